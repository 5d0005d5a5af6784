"""Every float operation of an int8 file has a reason."""

from __future__ import annotations

import onnx

from deploypruner.quantize.float_islands import float_operations
from deploypruner.quantize.static import quantize_static
from tests.int8_nets import Net, images
from tests.test_quantize_attention import saved, tokens


def test_attention_keeps_its_scale_and_its_softmax_in_float(tmp_path):
    fp32, _ = saved(tmp_path)
    quantize_static(fp32, tmp_path / "int8.onnx", calibration=[[tokens()]])
    found = {
        one["operation"]: (one["count"], one["reason"])
        for one in float_operations(tmp_path / "int8.onnx", "openvino")
    }
    assert found.keys() == {"Add", "Div", "Softmax", "Transpose"}
    assert found["Add"] == (4, "a stored operand, which u8 would round: it is fused with what stands beside it")
    assert found["Softmax"][1].startswith("a softmax is computed in float")
    assert found["Transpose"] == (1, "no int8 layer reads what it gives, or what it reads is float")


def test_what_int8_layers_read_is_no_island_and_sizes_are_none(tmp_path):
    """relu, pooling, concatenation and reshape pass integers on; a hard-swish and a recurrent layer do not."""
    net = Net(["n", 3, 8, 8])
    left, right = net.add("Relu", net.conv("x", 4, 3)), net.add("HardSwish", net.conv("x", 4, 3))
    both = net.add("MaxPool", net.add("Concat", left, left, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    mean = net.add("Mul", net.add("GlobalAveragePool", net.conv(both, 4, 8)), net.add("GlobalAveragePool", right))
    model = net.model(net.gemm(net.add("Flatten", mean), 3, 4))
    onnx.save(model, tmp_path / "fp32.onnx")
    quantize_static(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration=[[images(8)]])
    found = {one["operation"]: one["reason"] for one in float_operations(tmp_path / "int8.onnx", "openvino")}
    assert found.keys() == {"Flatten", "GlobalAveragePool", "HardSwish", "Mul"}
    assert (
        found["HardSwish"]
        == "neither runtime has it in int8; it is fused with the layer before it where the runtime can"
    )
    assert found["Mul"] == "a gate or an activation, which is fused in float"
