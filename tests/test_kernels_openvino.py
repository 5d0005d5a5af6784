"""The kernels as OpenVINO operations: right numbers, many requests at once, and files that contradict themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploypruner.errors import KernelError
from deploypruner.openvino_import import import_openvino, openvino_core
from deploypruner.runtime.on_openvino import add_sparse_operations
from deploypruner.sparse import library
from deploypruner.sparse.library import extension_path, is_built
from tests.kernel_cases import Case, as_onnx, in_torch, random_case

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels"),
]

openvino = import_openvino()
BIG = 11  # a seed whose convolution has more than one tile


def compiled(model: bytes, **settings: str):
    """What OpenVINO makes of an ONNX model with our operations, on one thread unless told otherwise."""
    add_sparse_operations()
    core = openvino_core()
    said = {"INFERENCE_NUM_THREADS": "1", "NUM_STREAMS": "1", **settings}
    return core.compile_model(core.read_model(model), "CPU", said)


def feeds(case: Case) -> list[np.ndarray]:
    return [case.x] if case.residual is None else [case.x, case.residual]


@pytest.mark.parametrize("threads", ["1", "2"])
def test_operations_inside_openvino_are_within_one_step_of_torch_in_float64(threads: str) -> None:
    for seed in range(40):
        case = random_case(1000 + seed, batch=1 + seed % 3)
        found = compiled(as_onnx(case), INFERENCE_NUM_THREADS=threads)(feeds(case))[0]
        assert np.abs(found - in_torch(case)).max() <= 1, f"seed {1000 + seed}: {case.shape}"


@pytest.mark.parametrize("streams", ["1", "2"])
def test_eight_requests_at_once_give_what_each_gives_alone(streams: str) -> None:
    case = random_case(BIG)
    model = compiled(as_onnx(case), INFERENCE_NUM_THREADS="2", NUM_STREAMS=streams, PERFORMANCE_HINT="THROUGHPUT")
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, case.x.shape).astype(np.uint8) for _ in range(64)]
    rest = feeds(case)[1:]
    # Not shared: with an open batch OpenVINO 2026.4 itself writes later requests into the last array it was shown.
    alone = [model([image, *rest], share_inputs=False)[0].copy() for image in images]
    # Without callbacks: the thread of one may wait for the interpreter that waits for the thread.
    requests = [model.create_infer_request() for _ in range(8)]
    found = []
    for begin in range(0, len(images), len(requests)):
        together = images[begin : begin + len(requests)]
        for request, image in zip(requests, together, strict=True):
            request.start_async([image, *rest])
        for request in requests:
            request.wait()
            found.append(request.get_output_tensor(0).data.copy())
    assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
    expected = in_torch(case, images[5])
    assert np.abs(found[5] - expected).max() <= 1


def test_memory_of_the_caller_need_not_be_aligned() -> None:
    case = random_case(BIG)
    raw = np.zeros(case.x.size + 65, np.uint8)
    start = -raw.ctypes.data % 64 + 1
    image = raw[start : start + case.x.size].reshape(case.x.shape)
    image[:] = case.x
    request = compiled(as_onnx(case)).create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(image, shared_memory=True))
    for index, array in enumerate(feeds(case)[1:], start=1):
        request.set_input_tensor(index, openvino.Tensor(array))
    request.infer()
    assert np.abs(request.get_output_tensor(0).data - in_torch(case)).max() <= 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"mask": np.zeros(3, np.uint8)}, "the mask has 3 bytes where"),
        ({"values": np.ones(2, np.int8)}, "and there are 2 values"),
        ({"scale": np.ones(1, np.float32)}, "scale and bias need one number for each of"),
        ({"bias": np.zeros(3, np.int32)}, "scale and bias need one number for each of"),
        ({"scale": np.full(6, np.nan, np.float32)}, "finite"),
        ({"mask": np.zeros(3, np.int8)}, "mask must be a constant of u8"),
        ({"channels_in": 2**31}, "sizes must be positive"),
        ({"group": 4}, "groups"),
        ({"height": 1000}, "input 0 needs uint8"),
        ({"low": 200, "high": 100}, "low is above high"),
        ({"output_zero_point": 256}, "must be in 0..255"),
        ({"input_zero_point": -1}, "must be in 0..255"),
    ],
)
def test_a_file_whose_operation_contradicts_itself_is_refused_when_it_is_read(changed, said: str) -> None:
    case = next(c for c in map(random_case, range(100, 200)) if c.shape.groups == 1 and c.residual is None)
    if "scale" in changed and len(changed["scale"]) == 6:
        changed = {"scale": np.full(len(case.scale), np.nan, np.float32)}
    with pytest.raises(RuntimeError, match=said):
        compiled(as_onnx(case, **changed))


def test_a_file_that_is_cut_off_is_refused() -> None:
    model = as_onnx(random_case(BIG))
    for kept in (len(model) // 2, len(model) - 7):
        with pytest.raises(RuntimeError):
            compiled(model[:kept])


def test_another_openvino_than_the_library_was_built_for_is_refused_with_both_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = extension_path()
    for name in (built.name, built.with_suffix(".version").name):
        (tmp_path / name).write_bytes((built.parent / name).read_bytes())
    (tmp_path / built.with_suffix(".version").name).write_text("2019.1.0\n")
    monkeypatch.setattr(library, "path_of", lambda name: tmp_path / name)
    with pytest.raises(KernelError, match=rf"built for OpenVINO 2019\.1\.0, and OpenVINO {openvino.__version__[:6]}"):
        extension_path()
