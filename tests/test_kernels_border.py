"""An image to C4 and max pooling there, inside OpenVINO, against ONNX Runtime and numpy; and a network of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploypruner.export.embed import embed_preprocessing
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.gates import MaxPool
from deploypruner.sparse.library import is_built
from deploypruner.sparse.verify import verify_operations
from tests.kernel_cases import DOMAIN
from tests.qdq import Qdq, images
from tests.sparse_reference import run_reference
from tests.test_kernels_openvino import compiled

needs_kernels = pytest.mark.skipif(not is_built(), reason="the package was built without its sparse kernels")

POOL = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}


def operations(size: tuple[int, int, int], **changed: object) -> bytes:
    """QuantizeC4, MaxPoolC4 and FromC4 on float32 [N, C, H, W], the batch open."""
    channels, high, wide = size
    step = {"scale": 0.05, "zero_point": 100}
    pool = {"channels": channels, "height": high, "width": wide, **POOL}
    for said in (step, pool):
        said.update({name: value for name, value in changed.items() if name in said})
    out = {"channels": channels, "height": (high - 1) // 2 + 1, "width": (wide - 1) // 2 + 1}
    nodes = [
        helper.make_node("QuantizeC4", ["x"], ["x4"], domain=DOMAIN, **step),
        helper.make_node("MaxPoolC4", ["x4"], ["y4"], domain=DOMAIN, **pool),
        helper.make_node("FromC4", ["y4"], ["y"], domain=DOMAIN, **out),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *size])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, ["n", out["height"], out["width"], channels])]
    graph = helper.make_graph(nodes, "border", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    made: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return made


def expected(x: np.ndarray) -> np.ndarray:
    steps = np.clip(np.rint(x / np.float32(0.05)) + 100, 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    padded = np.pad(steps, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    return windows[:, ::2, ::2].max((-2, -1))


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_operations_inside_openvino_give_numpys_bytes(threads: str) -> None:
    for number, size in enumerate([(3, 9, 7), (1, 5, 5), (70, 4, 21), (4, 1, 1)]):
        x = images(2, size, number) * 4
        x[0, 0, 0, 0] = 0.125  # a tie
        (y,) = compiled(operations(size), INFERENCE_NUM_THREADS=threads)([x]).to_tuple()
        np.testing.assert_array_equal(y, expected(x))


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale": 0.0}, "needs a positive scale"),
        ({"zero_point": 256}, "a zero point in 0..255"),
        ({"channels": 0}, "sizes must be positive"),
        ({"channels": 9}, "input 0 needs uint8"),
        ({"pads": [3, 1, 1, 1]}, "does not fit"),
        ({"strides": [0, 1]}, "does not fit"),
        ({"kernel_shape": [30, 30]}, "does not fit"),
        ({"pads": [1, 1]}, "need two numbers, pads four"),
    ],
)
def test_a_border_that_contradicts_itself_is_refused_when_it_is_read(changed: dict[str, object], said: str) -> None:
    with pytest.raises(RuntimeError, match=said):
        compiled(operations((3, 9, 7), **changed))


def stem(**pool: object) -> onnx.ModelProto:
    """Image, convolution, max pool, convolution, mean: an s8 image, as foreign quantizers write it."""
    g = Qdq(("batch", 3, 12, 12))
    x = g.pair("x", kind=np.int8, zero_point=-7)
    a = g.pair(g.conv(x, "a", (3, 10), taps=3, strides=[2, 2]), scale=0.02, zero_point=9)
    b = g.pair(g.node("MaxPool", [a], "p", **{**POOL, **pool}), scale=0.02, zero_point=9)
    c = g.pair(g.conv(b, "c", (10, 6)), scale=0.05)
    return g.model(g.node("GlobalAveragePool", [c], "y"))


def test_a_network_from_its_image_to_its_mean_is_ours_and_nothing_is_laid_out_twice(tmp_path) -> None:
    model = stem()
    found = sparsify(model, every=True)
    assert found.model is not None
    kinds = [node.op_type for node in found.model.graph.node]
    assert kinds == ["QuantizeC4", "SparseConv", "MaxPoolC4", "SparseConv", "PoolC4"]
    onnx.save(model, tmp_path / "int8.onnx")
    x = images(2, (3, 12, 12))
    (want,) = OnnxRuntime().open(tmp_path / "int8.onnx", literal=True).run([x])
    np.testing.assert_allclose(run_reference(found.model, {"x": x})[0], want, atol=0.02)
    if is_built():
        onnx.save(found.model, tmp_path / "sparse.onnx")
        layers = [choice.layer for choice in found.choices]
        assert verify_operations(tmp_path / "int8.onnx", tmp_path / "sparse.onnx", layers, [[x]]).passed


def test_pixels_become_what_the_prepared_image_is_quantized_to(tmp_path) -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = sparsify(stem(), every=True)
    assert found.model is not None
    onnx.save(found.model, tmp_path / "sparse.onnx")
    embed_preprocessing(tmp_path / "sparse.onnx", tmp_path / "pixels.onnx", mean=mean, std=std)
    model = onnx.load(tmp_path / "pixels.onnx")
    assert [node.op_type for node in model.graph.node] == [
        "PixelsC4",
        "SparseConv",
        "MaxPoolC4",
        "SparseConv",
        "PoolC4",
    ]
    pixels = np.arange(2 * 12 * 12 * 3).reshape(2, 12, 12, 3).astype(np.uint8)  # every byte is there
    scale, shift = (1 / (255 * np.array(std))).astype(np.float32), (-np.array(mean) / std).astype(np.float32)
    floats = (pixels.astype(np.float32) * scale + shift).transpose(0, 3, 1, 2).copy()
    want = run_reference(found.model, {"x": floats})[0]
    np.testing.assert_array_equal(run_reference(model, {"pixels": pixels})[0], want)
    if is_built():
        np.testing.assert_array_equal(
            OpenVino().open(tmp_path / "pixels.onnx").run([pixels])[0],
            OpenVino().open(tmp_path / "sparse.onnx").run([floats])[0],
        )


@needs_kernels
@pytest.mark.parametrize(
    ("table", "said"), [(np.zeros((2, 256), np.uint8), "needs a table of"), (np.zeros((3, 256), np.float32), "uint8")]
)
def test_a_table_of_other_channels_or_kind_is_refused(table: np.ndarray, said: str) -> None:
    node = helper.make_node("PixelsC4", ["x", "table"], ["y"], domain=DOMAIN)
    inputs = [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 4, 4, 3])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.UINT8, None)]
    graph = helper.make_graph([node], "pixels", inputs, outputs, [numpy_helper.from_array(table, "table")])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    with pytest.raises(RuntimeError, match=said):
        compiled(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


@pytest.mark.parametrize("pool", [{"ceil_mode": 1}, {"dilations": [2, 2]}, {"auto_pad": "SAME_UPPER", "pads": None}])
def test_a_max_pool_that_the_kernels_do_not_compute_stays_openvinos(pool: dict[str, object]) -> None:
    g = Qdq(("batch", 8, 12, 12))
    a = g.pair(g.conv(g.pair("x"), "a", (8, 8)), scale=0.02)
    said = {name: value for name, value in {**POOL, **pool}.items() if value is not None}
    b = g.pair(g.node("MaxPool", [a], "p", **said), scale=0.02)
    found = sparsify(g.model(g.node("Relu", [b], "y")), every=True)
    assert not any(isinstance(choice.layer, MaxPool) for choice in found.choices)


def test_a_max_pool_to_another_step_stays_openvinos() -> None:
    g = Qdq(("batch", 8, 12, 12))
    a = g.pair(g.conv(g.pair("x"), "a", (8, 8)), scale=0.02)
    b = g.pair(g.node("MaxPool", [a], "p", **POOL), scale=0.03)
    found = sparsify(g.model(g.node("Relu", [b], "y")), every=True)
    assert not any(isinstance(choice.layer, MaxPool) for choice in found.choices)
