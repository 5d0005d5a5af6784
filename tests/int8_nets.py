"""Small fp32 ONNX networks by hand, whose channels can be scaled without a change of what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]


class Net:
    """A graph that grows node by node; every method gives the name of what the node computes."""

    def __init__(self, shape: Sequence[int | str], *, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.stored: dict[str, Array] = {}
        self.shape = shape

    def add(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        names = [name] if outputs == 1 else [f"{name}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, name=name, **attributes))
        return names[0] if outputs == 1 else ",".join(names)

    def keep(self, values: Any, *, kind: type = np.float32) -> str:
        name = f"c{len(self.stored)}"
        self.stored[name] = np.asarray(values, kind)
        return name

    def conv(self, x: str, outputs: int, inputs: int, size: int = 3, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        weight = (
            self.rng.standard_normal((outputs, inputs // groups, size, size)) * (2 * groups / inputs) ** 0.5 / size
        )
        bias = 0.1 * self.rng.standard_normal(outputs)
        pads = [size // 2] * 4
        return self.add("Conv", x, self.keep(weight), self.keep(bias), pads=pads, **attributes)

    def gemm(self, x: str, outputs: int, inputs: int) -> str:
        weight = self.rng.standard_normal((outputs, inputs)) / inputs**0.5
        return self.add("Gemm", x, self.keep(weight), self.keep(np.zeros(outputs)), transB=1)

    def relu6(self, x: str) -> str:
        return self.add("Clip", x, self.keep(0.0), self.keep(6.0))

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(values, name) for name, values in self.stored.items()],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 8
        return onnx.shape_inference.infer_shapes(made)


def chain() -> onnx.ModelProto:
    """Convolution, relu, convolution."""
    net = Net(["n", 3, 8, 8])
    return net.model(net.conv(net.add("Relu", net.conv("x", 8, 3)), 5, 8))


def residual() -> onnx.ModelProto:
    """A residual stream with two branches, one of them depthwise, a mean and a linear layer."""
    net = Net(["n", 3, 8, 8], seed=1)
    stream = net.add("Relu", net.conv("x", 8, 3))
    branch = net.conv(net.add("Relu", net.conv(stream, 6, 8)), 8, 6)
    stream = net.add("Relu", net.add("Add", stream, branch))
    deep = net.add("Relu", net.conv(stream, 8, 8, group=8))
    stream = net.add("Add", stream, net.conv(deep, 8, 8, 1))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", stream))
    return net.model(net.gemm(pooled, 4, 8))


def parted() -> onnx.ModelProto:
    """Concatenation, split, pooling, groups, a constant that is added, and a linear layer on positions."""
    net = Net(["n", 3, 8, 8], seed=2)
    a, b = net.add("Relu", net.conv("x", 4, 3)), net.add("LeakyRelu", net.conv("x", 6, 3))
    both = net.add("MaxPool", net.add("Concat", a, b, axis=1), kernel_shape=[2, 2], strides=[2, 2])
    moved = net.add("Add", both, net.keep(net.rng.standard_normal((1, 10, 1, 1))))
    left, right = net.add("Split", moved, net.keep([6, 4], kind=np.int64), outputs=2, axis=1).split(",")
    left = net.add("Relu", net.conv(left, 4, 6, group=2))
    whole = net.add("Flatten", net.add("Add", left, right))
    return net.model(net.gemm(whole, 3, 4 * 16))


def run(model: onnx.ModelProto, x: Array) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def graph_of(model: onnx.ModelProto) -> ir.Graph:
    return ir.from_proto(model).graph


def values(model: onnx.ModelProto) -> Mapping[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def images(count: int, *, seed: int = 0, size: int = 8) -> Array:
    rng = np.random.default_rng(seed)
    varied = rng.standard_normal((count, 3, 1, 1)) + 0.3 * rng.standard_normal((count, 3, size, size))
    return varied.astype(np.float32)


def relu6_net() -> onnx.ModelProto:
    """MobileNetV2's parts: relu6, depthwise convolution with relu6, linear bottleneck that is added, classifier."""
    net = Net(["n", 3, 8, 8], seed=4)
    stream = net.conv(net.relu6(net.add("Mul", net.conv("x", 12, 3), net.keep(3.0))), 8, 12, 1)
    wide = net.relu6(net.add("Mul", net.conv(stream, 24, 8, 1), net.keep(3.0)))
    deep = net.relu6(net.add("Mul", net.conv(wide, 24, 24, group=24), net.keep(3.0)))
    stream = net.add("Add", stream, net.conv(deep, 8, 24, 1))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", net.relu6(net.conv(stream, 16, 8, 1))))
    return net.model(net.gemm(pooled, 5, 16))
