"""The sparse form of a QDQ graph: chosen layers as operations of our own domain, whole chains of them in C4.

    entry   float -> Transpose to channels last -> QuantizeLinear -> ToC4
    layer   SparseConv(x, mask, values, scale, bias [, residual])
    gate    PoolC4(x) -> float, ScaleC4(x, float)
    exit    FromC4 -> DequantizeLinear -> Transpose to channels first -> float

Transposition stands outside of the pair on both sides: OpenVINO then folds it into its neighbours, and its int8 pass
still sees the scale where it expects it. Between two chosen layers nothing stands.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploypruner.onnx_file import reads
from deploypruner.sparse.custom_ops import DOMAIN
from deploypruner.sparse.gates import Pool, Scale
from deploypruner.sparse.layer import Layer, Operation, QuantizedTensor
from deploypruner.sparse.onnx_graph import OnnxGraph
from deploypruner.sparse.packed import pack

VERSION = 1


def rewrite(graph: OnnxGraph, layers: Sequence[Operation]) -> onnx.ModelProto:
    """Replace `layers`, which must come from `match` on the same graph; the rest of the graph is untouched."""
    return _Rewriting(graph, layers).model()


class _Rewriting:
    """New nodes and initializers, each made once."""

    def __init__(self, graph: OnnxGraph, layers: Sequence[Operation]) -> None:
        self._graph = graph
        self._layers = layers
        self._made = {layer.y.key for layer in layers if layer.y is not None}
        self._entered: set[tuple[str, bool]] = set()
        self._after: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        self._tensors: dict[str, onnx.TensorProto] = {}

    def model(self) -> onnx.ModelProto:
        """The finished model."""
        replaced = {id(node) for layer in self._layers for node in layer.nodes}
        for layer in self._layers:
            self._enter(layer)
            # In place of the layer's last node: everything it reads has been computed there.
            self._after[layer.nodes[-1].output[0]] += [*self._operation(layer), *self._exit(layer)]
        # Restored by the exit, or by nobody.
        given = [layer.y.name for layer in self._layers if layer.y is not None]
        restored = {reader.output[0] for name in given for reader in self._graph.readers(name)}
        nodes = [made for name in self._after if self._graph.maker(name) is None for made in self._after[name]]
        for node in self._graph.nodes:
            gone = id(node) in replaced or (node.op_type == "DequantizeLinear" and node.output[0] in restored)
            nodes += [] if gone else [node]
            nodes += [made for name in node.output for made in self._after[name]]
        return self._assemble(nodes)

    def _enter(self, layer: Operation) -> None:
        """Bring what a layer reads into C4, unless another layer gave it so or has brought it already."""
        for read in layer.reads:
            if read.key not in self._made | self._entered:
                self._after[read.source] += self._entry(read)
                self._entered.add(read.key)

    def _entry(self, read: QuantizedTensor) -> list[onnx.NodeProto]:
        stem = c4_name(read)
        enter, last, quantized = f"{stem}_enter", f"{stem}_nhwc", f"{stem}_u8"
        if read.channels_last:
            move = self._reshape(read.source, last, [*read.size, read.channels])
        else:
            move = _transpose(read.source, last, [0, 2, 3, 1])
        move.name = f"{enter}_move"
        pair = [last, *self._step(read)]
        return [
            move,
            helper.make_node("QuantizeLinear", pair, [quantized], name=f"{enter}_quantize"),
            helper.make_node("ToC4", [quantized], [stem], name=enter, domain=DOMAIN),
        ]

    def _exit(self, layer: Operation) -> list[onnx.NodeProto]:
        """Bring a layer's output back for every reader that is not a chosen layer."""
        y = layer.y
        wanted = [] if y is None else needed_outside(self._graph, y, self._layers)
        if y is None or not wanted:
            return []
        stem = c4_name(y)
        leave, last = f"{stem}_leave", f"{stem}_nhwc_back"
        nodes = [from_c4(stem, last, y)]
        for index, restore in enumerate(wanted):
            real, target = f"{leave}_float_{index}", restore.output[0]
            pair = [last, *self._step(y)]
            nodes.append(helper.make_node("DequantizeLinear", pair, [real], name=f"{leave}_restore_{index}"))
            if y.channels_last:
                move = self._reshape(real, target, list(y.shape))
            else:
                move = _transpose(real, target, [0, 3, 1, 2])
            move.name = f"{leave}_move_{index}"
            nodes.append(move)
        return nodes

    def _operation(self, layer: Operation) -> list[onnx.NodeProto]:
        """The node that computes it, with the name it has for the user."""
        inputs, output, after = [c4_name(layer.x)], "", []
        if isinstance(layer, Layer):
            inputs += self._stored(layer)
        if isinstance(layer, Scale):
            inputs.append(layer.by)
        if isinstance(layer, Pool):
            output = f"{layer.mean}_image" if layer.flat else layer.mean
            after = [self._reshape(output, layer.mean, [layer.x.channels])] if layer.flat else []
        output = output if layer.y is None else c4_name(layer.y)
        node = helper.make_node(layer.op_type, inputs, [output], name=layer.name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(key, value) for key, value in layer.attributes().items())
        return [node, *after]

    def _stored(self, layer: Layer) -> list[str]:
        """What SparseConv reads besides x."""
        packed = pack(layer.weights)
        stored: dict[str, NDArray[Any]] = {
            "mask": packed.mask,
            "values": packed.values,
            "scale": layer.scale,
            "bias": layer.bias,
        }
        names = [self._constant(f"{layer.name}/sparse_{key}", value) for key, value in stored.items()]
        return names if layer.residual is None else [*names, c4_name(layer.residual)]

    def _step(self, activation: QuantizedTensor) -> tuple[str, str]:
        """Names of an activation's scale and u8 zero point."""
        stem = c4_name(activation)
        return (
            self._constant(f"{stem}_scale", np.array(activation.scale, np.float32)),
            self._constant(f"{stem}_zero_point", np.array(activation.zero_point, np.uint8)),
        )

    def _reshape(self, source: str, target: str, sizes: list[int]) -> onnx.NodeProto:
        """All but the batch."""
        shape = self._constant(f"{target}_shape", np.array([-1, *sizes], np.int64))
        return helper.make_node("Reshape", [source, shape], [target])

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        self._tensors[name] = numpy_helper.from_array(value, name)
        return name

    def _assemble(self, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
        old = self._graph.model
        tensors = [*old.graph.initializer, *self._tensors.values()]
        nodes = _reaching(nodes, self._graph.outputs)
        used = {name for node in nodes for name in reads(node)} | set(self._graph.outputs)
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


def from_c4(c4: str, target: str, activation: QuantizedTensor) -> onnx.NodeProto:
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
            wanted |= set(reads(node))
    return kept[::-1]


def needed_outside(
    graph: OnnxGraph, activation: QuantizedTensor, layers: Sequence[Operation]
) -> list[onnx.NodeProto]:
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


def c4_name(activation: QuantizedTensor) -> str:
    """What an activation's C4 form is called; nodes of its borders begin so, "..._enter" and "..._leave"."""
    return f"{activation.name}_{'tokens' if activation.channels_last else 'c4'}"


def _transpose(source: str, target: str, order: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [source], [target], perm=order)
