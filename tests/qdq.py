"""Small QDQ models, built node by node so that every number in them is known."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Qdq:
    """Nodes and tensors of a model under construction; every method gives the name of its result."""

    def __init__(self, shape=("batch", 8, 6, 6), *, seed=0):
        self.nodes, self.tensors = [], []
        self.rng = np.random.default_rng(seed)
        self.input = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)

    def store(self, name, value):
        self.tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, kind, inputs, name, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [name], name=f"n_{name}", **attributes))
        return name

    def pair(self, source, *, scale=0.05, zero_point=128, kind=np.uint8):
        """Quantize and restore `source`."""
        step = [
            self.store(f"{source}_scale", np.float32(scale)),
            self.store(f"{source}_zero", np.array(zero_point, kind)),
        ]
        return self.node("DequantizeLinear", [self.node("QuantizeLinear", [source, *step], f"{source}_q"), *step],
                         f"{source}_dq")  # fmt: skip

    def weights(self, name, shape, *, density=0.3, zero_point=0, kind=np.int8, axis=0):
        """A sparse integer weight with one scale per output channel, restored."""
        values = self.rng.integers(-127, 128, shape) * (self.rng.random(shape) < density)
        scale = self.rng.uniform(0.001, 0.003, shape[axis]).astype(np.float32)
        inputs = [
            self.store(f"{name}.weight", (values + zero_point).astype(kind)),
            self.store(f"{name}.scale", scale),
            self.store(f"{name}.zero", np.full(shape[axis], zero_point, kind)),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}_w", axis=axis)

    def conv(self, source, name, channels, *, taps=1, density=0.3, **attributes):
        """A convolution with a float bias, `channels` = (in, out)."""
        group = attributes.get("group", 1)
        weight = self.weights(name, (channels[1], channels[0] // group, taps, taps), density=density)
        bias = self.store(f"{name}.bias", self.rng.normal(0, 0.1, channels[1]).astype(np.float32))
        attributes.setdefault("pads", [taps // 2] * 4)
        return self.node("Conv", [source, weight, bias], name, **attributes)

    def model(self, *outputs, opset=19):
        made = [onnx.ValueInfoProto(name=name) for name in outputs]
        for value in made:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        graph = helper.make_graph(self.nodes, "g", [self.input], made, self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def chain(*, density=0.3, seed=0):
    """Four convolutions with a residual addition, a depthwise one and a relu that the pair does."""
    g = Qdq(seed=seed)
    x = g.pair("x")
    a = g.pair(g.conv(x, "a", (8, 16), taps=3, density=density), scale=0.02, zero_point=0)
    b = g.pair(g.conv(a, "b", (16, 16), taps=3, density=density, group=16), scale=0.02, zero_point=100)
    c = g.pair(g.conv(b, "c", (16, 16), density=density), scale=0.02, zero_point=90)
    s = g.pair(g.node("Add", [c, a], "s"), scale=0.03, zero_point=60)
    d = g.pair(g.conv(s, "d", (16, 12), density=density, strides=[2, 2]), scale=0.02, zero_point=120)
    return g.model(g.node("Sigmoid", [d], "y"))


def images(count=2, shape=(8, 6, 6), seed=1):
    """Standard normal input."""
    return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
