"""What is trained is what is executed: the module and a runtime give the same outputs for the same file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from deploypruner.qat import QdqModule, left_out
from deploypruner.quantize import quantize_static
from deploypruner.runtime import runtimes
from tests.int8_nets import Array, Net, images
from tests.test_qat import qdq_file


def residual_add() -> Net:
    """A residual stream with two branches; a convolution gives one side of each sum."""
    net = Net(["n", 3, 8, 8], seed=1)
    stream = net.add("Relu", net.conv("x", 8, 3))
    for _ in range(2):
        branch = net.conv(net.add("Relu", net.conv(stream, 12, 8)), 8, 12)
        stream = net.add("Relu", net.add("Add", stream, branch))
    return net


def projected() -> Net:
    """A sum of two convolutions."""
    net = Net(["n", 3, 8, 8], seed=2)
    stream = net.add("Relu", net.conv("x", 8, 3))
    branch = net.conv(net.add("Relu", net.conv(stream, 12, 8)), 16, 12)
    net.add("Relu", net.add("Add", net.conv(stream, 16, 8, 1), branch))
    return net


def depthwise() -> Net:
    """An inverted residual: expansion, depthwise, projection, sum without activation."""
    net = Net(["n", 3, 8, 8], seed=3)
    stream = net.relu6(net.conv("x", 8, 3))
    wide = net.relu6(net.conv(stream, 16, 8, 1))
    deep = net.relu6(net.conv(wide, 16, 16, group=16))
    net.add("Add", stream, net.conv(deep, 8, 16, 1))
    return net


def gated() -> Net:
    """Squeeze-and-excitation with a hard-sigmoid in a hard-swish block, and a residual sum behind it."""
    net = Net(["n", 3, 8, 8], seed=4)
    stream = net.add("HardSwish", net.conv("x", 8, 3))
    wide = net.add("HardSwish", net.conv(stream, 16, 8))
    squeezed = net.add("Relu", net.conv(net.add("GlobalAveragePool", wide), 4, 16, 1))
    gate = net.add("HardSigmoid", net.conv(squeezed, 16, 4, 1), alpha=1 / 6)
    net.add("Add", stream, net.conv(net.add("Mul", wide, gate), 8, 16, 1))
    return net


def classified(net: Net) -> onnx.ModelProto:
    """With a global pool and a linear layer of ten classes behind the net's 8 or 16 channels."""
    last = net.nodes[-1].output[0]
    features = net.add("Flatten", net.add("GlobalAveragePool", last))
    shape = onnx.shape_inference.infer_shapes(net.model(features)).graph.output[0].type.tensor_type.shape
    return net.model(net.gemm(features, 10, shape.dim[1].dim_value))


NETS = {"residual": (residual_add, 2), "projected": (projected, 1), "depthwise": (depthwise, 1), "gated": (gated, 1)}


def quantized(folder: Path, name: str) -> Path:
    onnx.save(classified(NETS[name][0]()), folder / "fp32.onnx")
    quantize_static(folder / "fp32.onnx", folder / "int8.onnx", calibration=[[images(64)]])
    return folder / "int8.onnx"


def trained_as(path: Path, unrounded: Collection[str], x: Array) -> Array:
    with torch.no_grad():
        return np.asarray(QdqModule(path, unrounded=unrounded).eval()(torch.from_numpy(x)))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_outputs_in_training_are_those_of_the_runtime(tmp_path: Path, name: str, runtime: str) -> None:
    path, x = quantized(tmp_path, name), images(64, seed=1)
    unrounded = left_out(path, runtime, [x])
    assert len(unrounded) == (NETS[name][1] if runtime == "openvino" else 0)
    executed = runtimes.get(runtime)().open(path).run([x])[0]
    apart = np.abs(trained_as(path, unrounded, x) - executed)
    # A sum in another order may turn a tie of rounding: one step of a feature, in few samples.
    assert (apart < 1e-5).mean() > 0.97
    assert apart.max() < 0.05 * executed.std()
    if runtime == "openvino":  # rounded wherever the file rounds, it would not be so
        assert np.abs(trained_as(path, (), x) - executed).mean() > 100 * apart.mean()


def test_what_is_left_out_clips_alone(tmp_path: Path) -> None:
    path = qdq_file(tmp_path / "m.onnx", [[1, 2], [-3, 4]], [0.25, 2.0])
    x = torch.tensor([[1.2, -9.0], [200.0, 0.3]], requires_grad=True)
    found = QdqModule(path, unrounded={"round"})(x)
    # Steps of 0.5 from -3 to 252: 1.2 and 0.3 stay, -9 is clipped to -1.5, 200 to 126; biases are 0.5 and -2.
    wanted = [[0.3 - 0.75 + 0.5, -7.2 - 12.0 - 2.0], [31.5 + 0.15 + 0.5, -756.0 + 2.4 - 2.0]]
    torch.testing.assert_close(found, torch.tensor(wanted))
    found[:, 0].sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.25, 0.0], [0.0, 0.5]]))
