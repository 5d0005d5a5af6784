from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploypruner.errors import InputError, RecipeError
from deploypruner.records import TensorSpec
from deploypruner.runtime import Session, check_feeds, runtimes
from deploypruner.runtime.on_onnxruntime import OnnxRuntime

pytestmark = pytest.mark.slow

X = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)
WEIGHT = np.array([[1, 0], [0, 1], [1, 1]], dtype=np.float32)
BY_HAND = [[4.0, 1.0]]


def save_linear(path: Path, batch: int | str = "N") -> Path:
    """relu(x @ W), x `[batch, 3]`, y `[batch, 2]`, and the sum of y as a second output."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("Relu", ["product"], ["y"]),
            helper.make_node("ReduceSum", ["y"], ["total"], keepdims=0),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 2]),
            helper.make_tensor_value_info("total", TensorProto.FLOAT, []),
        ],
        [numpy_helper.from_array(WEIGHT, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def save_half_steps(path: Path) -> Path:
    """Quantize to whole steps of 1, multiply by 1, dequantize: 0.4 becomes 0 when executed literally."""
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["y"]),
        ],
        "steps",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
        [
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.int8(0), "zero"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


OPEN_ONNX = [name for name in runtimes if ".onnx" in runtimes.get(name).suffixes]


@pytest.fixture(params=OPEN_ONNX)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def open_linear(runtime: str, folder: Path, batch: int | str = "N") -> Session:
    return runtimes.get(runtime)().open(save_linear(folder / "linear.onnx", batch), threads=1)


def test_outputs_by_hand_in_declared_order(runtime: str, tmp_path: Path) -> None:
    y, total = open_linear(runtime, tmp_path).run([X])
    assert y.tolist() == BY_HAND
    assert total.tolist() == 5.0


def test_specs_name_shape_and_dtype_are_the_models(runtime: str, tmp_path: Path) -> None:
    session = open_linear(runtime, tmp_path)
    assert session.inputs == (TensorSpec("x", (None, 3), "float32"),)
    assert session.outputs == (TensorSpec("y", (None, 2), "float32"), TensorSpec("total", (), "float32"))


def test_an_earlier_result_survives_a_later_run(runtime: str, tmp_path: Path) -> None:
    session = open_linear(runtime, tmp_path)
    first = session.run([X])[0]
    session.run([np.zeros_like(X)])
    assert first.tolist() == BY_HAND


def test_a_prepared_call_can_be_repeated_and_leaves_run_alone(runtime: str, tmp_path: Path) -> None:
    session = open_linear(runtime, tmp_path)
    infer = session.prepare([2 * X])
    infer()
    infer()
    assert session.run([X])[0].tolist() == BY_HAND


def test_settings_state_the_threads(runtime: str, tmp_path: Path) -> None:
    session = runtimes.get(runtime)().open(save_linear(tmp_path / "m.onnx"), threads=2)
    assert "2" in session.settings.values()


OPENED_AND_CLOSED = """
import signal, sys
from pathlib import Path
from deploypruner.runtime import runtimes
first, second = (runtimes.get(sys.argv[1])().open(Path(sys.argv[2])) for _ in range(2))
del first
del second
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_signal_is_heard_after_two_sessions_went_in_the_order_they_came(runtime: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPENED_AND_CLOSED, runtime, save_linear(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_openvino_is_told_to_stay_in_f32(tmp_path: Path) -> None:
    assert open_linear("openvino", tmp_path).settings["INFERENCE_PRECISION_HINT"] == "f32"


def test_runtimes_agree_on_random_input(tmp_path: Path) -> None:
    x = np.random.default_rng(3).standard_normal((4, 3), dtype=np.float32)
    found = {name: open_linear(name, tmp_path).run([x])[0] for name in OPEN_ONNX}
    for name, other in found.items():
        exact = not runtimes.get(name).in_float32  # bf16 has 8 bits
        np.testing.assert_allclose(other, found["onnxruntime"], **{"atol": 1e-5} if exact else {"rtol": 2**-7})


def test_openvino_opens_its_own_ir(tmp_path: Path) -> None:
    import openvino

    openvino.save_model(openvino.convert_model(save_linear(tmp_path / "m.onnx")), tmp_path / "m.xml")
    assert runtimes.get("openvino")().open(tmp_path / "m.xml").run([X])[0].tolist() == BY_HAND


def test_literal_executes_every_rounding_and_says_so(tmp_path: Path) -> None:
    session = OnnxRuntime().open(save_half_steps(tmp_path / "q.onnx"), literal=True)
    assert session.settings["graph_optimization_level"] == "ORT_DISABLE_ALL"
    x = np.array([[0.4, 0.6, 200.0]], dtype=np.float32)
    assert session.run([x])[0].tolist() == [[0.0, 1.0, 127.0]]


@pytest.mark.parametrize("kept_bytes", [0, 40])
def test_a_truncated_file_is_named_with_a_hint(runtime: str, tmp_path: Path, kept_bytes: int) -> None:
    path = save_linear(tmp_path / "cut.onnx")
    path.write_bytes(path.read_bytes()[:kept_bytes])
    said = (
        r"cannot load '.*cut\.onnx': [\s\S]*hint: the file may be truncated"
        if kept_bytes
        else r"is empty \(0 bytes\)"
    )
    with pytest.raises(InputError, match=said):
        runtimes.get(runtime)().open(path)


def test_an_ir_without_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"'m\.bin' is missing"):
        runtimes.get("openvino")().open(tmp_path / "m.xml")


def test_a_missing_file_is_named(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no model file '.*gone\.onnx'"):
        runtimes.get(runtime)().open(tmp_path / "gone.onnx")


def test_a_foreign_suffix_is_refused_with_what_it_opens(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot open '.*m\.pt2'[\s\S]*hint: it opens \.onnx"):
        runtimes.get(runtime)().open(tmp_path / "m.pt2")


def test_no_threads_are_refused(runtime: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="threads must be >= 1, got 0"):
        runtimes.get(runtime)().open(save_linear(tmp_path / "m.onnx"), threads=0)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], r"the model has 1 inputs \(x\), got 0 arrays"),
        ([X.astype(np.float64)], "input 'x' is float32, got float64"),
        ([X[:, :2]], r"input 'x' has shape \[\?, 3\], got \[1, 2\]"),
        ([X[0]], r"input 'x' has shape \[\?, 3\], got \[3\]"),
    ],
)
def test_wrong_feeds_are_named(feeds: list[np.ndarray], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_feeds((TensorSpec("x", (None, 3), "float32"),), feeds)


def test_a_misspelt_runtime_offers_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"no runtime called 'openvin'[\s\S]*did you mean 'openvino'\?"):
        runtimes.get("openvin")


def test_discovering_runtimes_loads_no_library() -> None:
    code = (
        "import sys; from deploypruner.runtime import runtimes; assert list(runtimes); "
        "print(sorted({'torch', 'openvino', 'onnxruntime', 'onnx'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
