"""ONNX files that others wrote: read as they are meant, or refused with the reason; fed with real inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

from deploypruner.build.sparsify_inputs import named_arrays
from deploypruner.errors import InputError
from deploypruner.measure.files import denormal_weights, detect_precision
from deploypruner.measure.inputs import random_feeds
from deploypruner.onnx_graph import read_graph
from deploypruner.quantize.preparing import prepared
from deploypruner.records import TensorSpec
from deploypruner.sparse.convert import check_convertible, sparsify
from deploypruner.sparse.qdq import read_quantize

pytestmark = pytest.mark.slow


def model(nodes: list, consts: dict[str, np.ndarray], *, opset: int = 21) -> onnx.ModelProto:
    """A model of x [b, 8, 4, 4] -> y."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 8, 4, 4])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", None, None, None])],
        [numpy_helper.from_array(value, name) for name, value in consts.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    made.ir_version = 10
    return made


def symmetric() -> onnx.ModelProto:
    """A pair without zero points around a convolution whose weights are mostly zero."""
    rng = np.random.default_rng(0)
    weights = (rng.integers(-127, 128, (8, 8, 1, 1)) * (rng.random((8, 8, 1, 1)) < 0.3)).astype(np.int8)
    stored, node = {"output_dtype": T.INT8}, helper.make_node
    nodes = [
        node("QuantizeLinear", ["x", "sx"], ["xq"], **stored),
        node("DequantizeLinear", ["xq", "sx"], ["xd"]),
        node("DequantizeLinear", ["w", "sw"], ["wd"]),
        node("Conv", ["xd", "wd"], ["h"], kernel_shape=[1, 1]),
        node("QuantizeLinear", ["h", "sy"], ["yq"], **stored),
        node("DequantizeLinear", ["yq", "sy"], ["y"]),
    ]
    scales = {name: np.float32(value) for name, value in (("sx", 0.03), ("sw", 0.01), ("sy", 0.08))}
    return model(nodes, {"w": weights, **{name: np.asarray(value) for name, value in scales.items()}})


def test_int8_said_by_output_dtype_is_int8():
    first = next(node for node in read_graph(symmetric()).graph if node.op_type == "QuantizeLinear")
    assert read_quantize(first, channels_last=False).zero_point == 128, "u8 is s8 moved by 128"
    assert sparsify(symmetric(), every=True).chosen == 1


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    weights = np.random.default_rng(0).standard_normal((16, 4)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 16])],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8
    onnx.save(made, tmp_path / "fp32.onnx")
    return tmp_path / "fp32.onnx"


def test_a_dynamically_quantized_file_is_int8_and_refused_by_name(linear: Path):
    quantize_dynamic(linear, linear.with_name("dynamic.onnx"))
    path = linear.with_name("dynamic.onnx")
    assert detect_precision(path) == "int8"
    with pytest.raises(
        InputError, match=r"quantized dynamically \((DynamicQuantizeLinear|MatMulInteger)\)[\s\S]*fp32"
    ):
        check_convertible(onnx.load(path))


def test_the_operator_oriented_form_is_refused_by_name():
    nodes = [helper.make_node("QLinearConv", ["x", *"abcdefg"], ["y"])]
    with pytest.raises(InputError, match=r"operator-oriented form \(QLinearConv\)"):
        check_convertible(model(nodes, {}))


def test_shapes_of_another_file_are_not_this_ones():
    specs = [TensorSpec("x", (None, 3, None, None), "float32")]
    shapes = {"x": (1, 3, 8, 9), "images": (1, 3, 8, 9)}
    assert random_feeds(specs, shapes=shapes, others=True)[0].shape == (1, 3, 8, 9)
    with pytest.raises(InputError, match="no input called 'images'"):
        random_feeds(specs, shapes=shapes)
    with pytest.raises(InputError, match="no input called 'images'"):
        random_feeds(specs, shapes={"images": (1, 3, 8, 9)}, others=True)


def test_real_inputs_by_name(tmp_path: Path):
    specs = [TensorSpec("ids", (None, 3), "int32"), TensorSpec("mask", (2, 3), "bool")]
    ids = np.arange(12).reshape(4, 3) * 1000
    np.savez(tmp_path / "d.npz", ids=ids, mask=np.ones((4, 3), np.int64))
    feeds = named_arrays(tmp_path / "d.npz", specs)
    assert feeds is not None
    assert (feeds[0].dtype, feeds[0].tolist()) == (np.int32, ids.tolist())
    assert (feeds[1].dtype, feeds[1].shape) == (np.bool_, (2, 3))
    np.savez(tmp_path / "x.npz", x=ids)
    assert named_arrays(tmp_path / "x.npz", specs) is None
    with pytest.raises(InputError, match=r"'ids' of .* has shape \[4, 3\] \(int64\), the model takes \[\?, 5\]"):
        named_arrays(tmp_path / "d.npz", [TensorSpec("ids", (None, 5), "int32")])


def test_denormal_weights_are_counted(linear: Path):
    assert denormal_weights(linear) == 0
    made = onnx.load(linear)
    weights = numpy_helper.to_array(made.graph.initializer[0]).copy()
    weights[0, :3] = (1e-40, -1e-39, 0)
    made.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    onnx.save(made, linear)
    assert denormal_weights(linear) == 2


def test_stock_onnxruntime_takes_the_symmetric_model():
    """What the tests above read is sound: not made up for them."""
    onnx.checker.check_model(symmetric(), full_check=True)
    x = np.random.default_rng(1).standard_normal((1, 8, 4, 4)).astype(np.float32)
    (y,) = onnxruntime.InferenceSession(symmetric().SerializeToString()).run(None, {"x": x})
    assert np.abs(y).max() > 0.08


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 8), (8,)])
def test_any_shape_of_a_bias_and_inputs_that_are_stored_are_prepared(shape):
    """IR version 3 lists its constants among the inputs."""
    rng = np.random.default_rng(0)
    consts = {"w": rng.standard_normal((16, 8)).astype("f"), "c": rng.standard_normal(shape).astype("f")}
    values = [helper.make_tensor_value_info(name, T.FLOAT, array.shape) for name, array in consts.items()]
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "c"], ["h"]), helper.make_node("Relu", ["h"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, ["b", 16]), *values],
        [helper.make_tensor_value_info("y", T.FLOAT, ["b", 8])],
        [numpy_helper.from_array(array, name) for name, array in consts.items()],
    )
    given = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    given.ir_version = 3
    made = prepared(given)
    assert [value.name for value in made.graph.input] == ["x"]
    (gemm,) = [node for node in made.graph.node if node.op_type.endswith("Gemm")]
    bias = next(t for t in made.graph.initializer if t.name == gemm.input[2])
    assert list(bias.dims) == [8]
    x = {"x": rng.standard_normal((3, 16)).astype("f")}
    before, after = (onnxruntime.InferenceSession(m.SerializeToString()).run(None, x)[0] for m in (given, made))
    np.testing.assert_allclose(after, before, rtol=1e-6)
