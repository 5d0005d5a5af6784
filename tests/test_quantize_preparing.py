"""fp32 ONNX models of other exporters, brought to the form the quantizer reads."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploypruner.errors import InputError
from deploypruner.quantize.preparing import prepared
from deploypruner.runtime.on_onnxruntime import OnnxRuntime

pytestmark = pytest.mark.slow


def foreign(*, opset=11, kind="BatchNormalization"):
    """A convolution and a batch norm without names, as old exporters wrote them."""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.normal(size=(4, 3, 3, 3)), **{name: rng.uniform(0.5, 1.5, 4) for name in "smvb"}}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node(kind, ["c", *"sbmv"], ["n"]),
        helper.make_node("Relu", ["n"], ["y"]),
    ]
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in
             (("x", ["b", 3, 8, 8]), ("y", ["b", 4, 8, 8]))]  # fmt: skip
    stored = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def outputs(model, path):
    onnx.save(model, path)
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8), dtype=np.float32)
    return OnnxRuntime().open(path).run([x])[0]


def test_an_old_model_becomes_an_equal_one_with_names_and_without_batch_norm(tmp_path):
    model = foreign()
    made = prepared(model)
    assert [node.op_type for node in made.graph.node] == ["Conv", "Relu"]
    assert all(node.name for node in made.graph.node)
    assert made.opset_import[0].version >= 13
    assert [node.name for node in model.graph.node] == ["", "", ""]
    np.testing.assert_allclose(outputs(made, tmp_path / "b.onnx"), outputs(model, tmp_path / "a.onnx"), atol=1e-5)


def test_a_model_onnxruntime_cannot_load_is_refused_with_its_words():
    with pytest.raises(InputError, match=r"ONNX Runtime cannot load the model: .*NoSuchOperator"):
        prepared(foreign(opset=17, kind="NoSuchOperator"))


def test_an_opset_that_cannot_be_raised_is_refused_with_its_number():
    with pytest.raises(InputError, match="the model has opset 9, and int8 needs 13"):
        prepared(foreign(opset=9, kind="NoSuchOperator"))
