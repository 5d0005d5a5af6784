"""The sparse form of a QDQ graph: chosen layers as operations of our own domain, whole chains of them in C4.

    entry   float -> Transpose to channels last -> QuantizeLinear -> ToC4
    layer   SparseConv(x, mask, values, scale, bias [, residual])
    exit    FromC4 -> DequantizeLinear -> Transpose to channels first -> float

Transposition stands outside of the pair on both sides: OpenVINO then folds it into its neighbours, and its int8 pass
still sees the scale where it expects it. Between two chosen layers nothing stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploypruner.sparse.layer import Activation, Layer
from deploypruner.sparse.marks import DOMAIN
from deploypruner.sparse.onnx_graph import Graph
from deploypruner.sparse.packed import pack

VERSION = 1


def rewrite(graph: Graph, layers: Sequence[Layer]) -> onnx.ModelProto:
    """Replace `layers`, which must come from `match` on the same graph; the rest of the graph is untouched."""
    return _Rewriting(graph, layers).model()


class _Rewriting:
    """New nodes and initializers, each made once, in topological order of the layers."""

    def __init__(self, graph: Graph, layers: Sequence[Layer]) -> None:
        self._graph = graph
        self._layers = layers
        self._made = {layer.y.key for layer in layers}
        self._entered: set[tuple[str, bool]] = set()
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._tensors: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        replaced = {id(node) for layer in self._layers for node in layer.nodes}
        for layer in self._layers:
            # In place of the layer's last node: everything it reads has been computed there.
            self._before[layer.nodes[-1].output[0]] = [*self._entries(layer), self._conv(layer), *self._exit(layer)]
        restored = {
            reader.output[0] for layer in self._layers for reader in self._graph.readers(layer.y.name)
        }  # by the exit, or by nobody
        nodes: list[onnx.NodeProto] = []
        for node in self._graph.nodes:
            if node.op_type == "DequantizeLinear" and node.output[0] in restored:
                continue
            if id(node) not in replaced:
                nodes.append(node)
            nodes += self._before.get(node.output[0], [])
        return self._assemble(nodes)

    def _entries(self, layer: Layer) -> list[onnx.NodeProto]:
        """Bring what a layer reads into C4, unless another layer gave it so or has brought it already."""
        nodes: list[onnx.NodeProto] = []
        for read in layer.reads:
            if read.key not in self._made | self._entered:
                nodes += self._entry(read)
                self._entered.add(read.key)
        return nodes

    def _entry(self, read: Activation) -> list[onnx.NodeProto]:
        last, stem = f"{_c4(read)}_nhwc", _c4(read)
        if read.channels_last:
            shape = self._constant(f"{stem}_shape", np.array([-1, *read.size, read.channels], np.int64))
            move = helper.make_node("Reshape", [read.source, shape], [last], name=f"{stem}_reshape")
        else:
            move = _transpose(read.source, last, [0, 2, 3, 1])
        quantized = f"{stem}_u8"
        pair = [last, *self._step(read)]
        return [
            move,
            helper.make_node("QuantizeLinear", pair, [quantized], name=f"{stem}_quantize"),
            helper.make_node("ToC4", [quantized], [stem], name=f"{stem}_enter", domain=DOMAIN),
        ]

    def _exit(self, layer: Layer) -> list[onnx.NodeProto]:
        """Bring a layer's output back for every reader that is not a chosen layer."""
        y = layer.y
        wanted = needed_outside(self._graph, y, self._layers)
        if not wanted:
            return []
        last, stem = f"{_c4(y)}_nhwc", _c4(y)
        nodes = [from_c4(stem, last, y)]
        for restore in wanted:
            real = f"{restore.output[0]}_nhwc"
            nodes.append(helper.make_node("DequantizeLinear", [last, *self._step(y)], [real], name=f"{real}_restore"))
            if y.channels_last:
                shape = self._constant(f"{stem}_shape_back", np.array([-1, *y.shape], np.int64))
                nodes.append(helper.make_node("Reshape", [real, shape], [restore.output[0]], name=f"{real}_reshape"))
            else:
                nodes.append(_transpose(real, restore.output[0], [0, 3, 1, 2]))
        return nodes

    def _conv(self, layer: Layer) -> onnx.NodeProto:
        packed = pack(layer.weights)
        stored: dict[str, NDArray[Any]] = {
            "mask": packed.mask,
            "values": packed.values,
            "scale": layer.scale,
            "bias": layer.bias,
        }
        inputs = [_c4(layer.x), *(self._constant(f"{layer.name}.{key}", value) for key, value in stored.items())]
        if layer.residual is not None:
            inputs.append(_c4(layer.residual))
        node = helper.make_node("SparseConv", inputs, [_c4(layer.y)], name=layer.name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in layer.attributes().items())
        return node

    def _step(self, activation: Activation) -> tuple[str, str]:
        """Names of an activation's scale and u8 zero point."""
        stem = _c4(activation)
        return (
            self._constant(f"{stem}_scale", np.array(activation.scale, np.float32)),
            self._constant(f"{stem}_zero_point", np.array(activation.zero_point, np.uint8)),
        )

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._tensors[name] = numpy_helper.from_array(value, name)
        return name

    def _assemble(self, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        old = self._graph.model
        tensors = [*old.graph.initializer, *self._tensors.values()]
        nodes = _reaching(nodes, self._graph.outputs)
        used = {name for node in nodes for name in node.input} | set(self._graph.outputs)
        made = helper.make_graph(
            nodes,
            old.graph.name,
            [value for value in old.graph.input if value.name in self._graph.inputs],
            old.graph.output,
            [tensor for tensor in tensors if tensor.name in used],
        )
        opsets = [*old.opset_import, helper.make_opsetid(DOMAIN, VERSION)]
        model = helper.make_model(made, opset_imports=opsets, producer_name="deploypruner", functions=old.functions)
        model.ir_version = old.ir_version
        return model


def from_c4(c4: str, target: str, activation: Activation) -> onnx.NodeProto:
    """The node that brings the tensor `c4` back to [N, height, width, channels]."""
    height, width = activation.size
    sizes = {"channels": activation.channels, "height": height, "width": width}
    node = helper.make_node("FromC4", [c4], [target], name=f"{c4}_leave", domain=DOMAIN)
    node.attribute.extend(helper.make_attribute(key, value) for key, value in sizes.items())
    return node


def _reaching(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Nodes from which an output can be reached, in their order."""
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= {name for name in node.input if name}
    return kept[::-1]


def needed_outside(graph: Graph, activation: Activation, layers: Sequence[Layer]) -> list[onnx.NodeProto]:
    """The DequantizeLinear nodes of an activation that anything but `layers` reads."""
    inside = {
        id(node)
        for layer in layers
        if any(read.key == activation.key for read in layer.reads)
        for node in layer.nodes
    }

    def is_needed(name: str) -> bool:
        return name in graph.outputs or any(id(reader) not in inside for reader in graph.readers(name))

    return [restore for restore in graph.readers(activation.name) if is_needed(restore.output[0])]


def _c4(activation: Activation) -> str:
    return f"{activation.name}_{'tokens' if activation.channels_last else 'c4'}"


def _transpose(source: str, target: str, order: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [target], name=f"{target}_transpose", perm=order)
