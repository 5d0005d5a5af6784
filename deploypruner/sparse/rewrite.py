"""The sparse form of a QDQ graph: chosen layers as operations of our own domain, whole chains of them in C4.

    image   float, an input of the model -> QuantizeC4
    entry   float -> Transpose to channels last -> QuantizeLinear -> ToC4
    layer   SparseConv(x, mask, values, scale, bias [, residual])
    gate    PoolC4(x) -> float, ScaleC4(x, float), MaxPoolC4(x)
    linear  SparseLinear(float, mask, values, scale, bias) -> float, of one pixel
    exit    FromC4 -> DequantizeLinear -> Transpose to channels first -> float

Transposition stands outside of the pair on both sides: OpenVINO then folds it into its neighbours, and its int8 pass
still sees the scale where it expects it. Between two chosen layers nothing stands.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.onnx_graph import readers, remove_unused, take_over, to_model
from deploypruner.sparse.custom_ops import DOMAIN
from deploypruner.sparse.gates import Pool, Scale
from deploypruner.sparse.layer import Layer, Operation, QuantizedTensor, Weighted
from deploypruner.sparse.linear import LinearLayer
from deploypruner.sparse.packed import pack

VERSION = 1


def rewrite(model: ir.Model, layers: Sequence[Operation]) -> onnx.ModelProto:
    """A copy without `layers`, which must come from `match` on the same model, but with what computes them."""
    graph = model.graph.clone()
    _Rewriting(model.graph, graph, layers).run()
    remove_unused(graph)
    graph.opset_imports[DOMAIN] = VERSION
    functions = list(model.functions.values())
    made = to_model(ir.Model(graph, ir_version=model.ir_version, producer_name="deploypruner", functions=functions))
    del made.graph.value_info[:]
    return made


class _Rewriting:
    """A graph under change.

    Args:
        old: What the layers were matched in.
        graph: A copy of it, changed in place.
        layers: What is replaced.
    """

    def __init__(self, old: ir.Graph, graph: ir.Graph, layers: Sequence[Operation]) -> None:
        self._graph = graph
        self._layers = layers
        self._twins = dict(zip(old, graph, strict=True))
        self._values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
        self._stored: dict[str, ir.Value] = {}
        self._last: dict[ir.Node | None, ir.Node] = {}
        # Every activation in C4; named beforehand, as a layer may stand before the one whose output it adds.
        self._c4 = {layer.y.key: ir.val(c4_name(layer.y)) for layer in layers if layer.y is not None}

    def run(self) -> None:
        """Give everything that reads the layers' nodes something else to read."""
        for layer in self._layers:
            for read in layer.reads:
                self._enter(read)
            # In place of the layer's last node: everything it reads has been computed there.
            self._compute(layer)
            self._exit(layer)

    def _enter(self, read: QuantizedTensor) -> None:
        """Bring an activation into C4, unless a layer gives it so or it has been brought already."""
        if read.key in self._c4:
            return
        source, stem = self._values[read.source], c4_name(read)
        enter, last = f"{stem}_enter", f"{stem}_nhwc"
        after, move = source.producer(), f"{enter}_move"
        if _is_image(source, read):
            step = {"scale": read.scale, "zero_point": read.zero_point}
            self._c4[read.key] = self._node(after, "QuantizeC4", [source], stem, step, name=enter, domain=DOMAIN)
            return
        if read.channels_last:
            moved = self._reshape(after, source, last, [*read.size, read.channels], name=move)
        else:
            moved = self._node(after, "Transpose", [source], last, {"perm": [0, 2, 3, 1]}, name=move)
        pair = [moved, *self._step(read)]
        quantized = self._node(after, "QuantizeLinear", pair, f"{stem}_u8", name=f"{enter}_quantize")
        self._c4[read.key] = self._node(after, "ToC4", [quantized], stem, name=enter, domain=DOMAIN)

    def _exit(self, layer: Operation) -> None:
        """Bring a layer's output back for every reader that is not a chosen layer."""
        y, last = layer.y, layer.nodes[-1]
        wanted = [] if y is None else needed_outside(last.outputs[0], y, self._layers)
        if y is None or not wanted:
            return
        after, stem = self._twins[last], c4_name(y)
        leave = f"{stem}_leave"
        image = self._node(
            after, "FromC4", [self._c4[y.key]], f"{stem}_nhwc_back", from_c4_attributes(y), name=leave, domain=DOMAIN
        )
        for index, restore in enumerate(wanted):
            pair, name = [image, *self._step(y)], f"{leave}_restore_{index}"
            real = self._node(after, "DequantizeLinear", pair, f"{leave}_float_{index}", name=name)
            target, move = self._twins[restore].outputs[0], f"{leave}_move_{index}"
            if y.channels_last:
                moved = self._reshape(after, real, str(target.name), list(y.shape), name=move)
            else:
                moved = self._node(after, "Transpose", [real], str(target.name), {"perm": [0, 3, 1, 2]}, name=move)
            self._replace(target, moved)

    def _compute(self, layer: Operation) -> None:
        """Insert the node that computes a layer, with the name it has for the user."""
        after, flat = self._twins[layer.nodes[-1]], isinstance(layer, Pool) and layer.flat
        if layer.y is not None:
            given = self._c4[layer.y.key]
        elif isinstance(layer, LinearLayer):
            given = ir.val(layer.result)
        else:
            given = ir.val(f"{layer.name}_image" if flat else layer.name)
        inputs = self._inputs(layer)
        node = ir.node(layer.op_type, inputs, layer.attributes(), outputs=[given], name=layer.name, domain=DOMAIN)
        self._insert(after, node)
        if layer.y is None:
            real = self._reshape(after, given, layer.name, [layer.x.channels], name="") if flat else given
            self._replace(after.outputs[0], real)

    def _inputs(self, layer: Operation) -> list[ir.Value]:
        """What the node of a layer reads."""
        if isinstance(layer, LinearLayer):
            # What it quantizes itself; where that is computed in C4, what comes out of there.
            x = self._values[layer.restored if layer.x.key in self._c4 else layer.x.source]
            return [x, *self._weights(layer)]
        inputs = [self._c4[layer.x.key]]
        if isinstance(layer, Layer):
            inputs += self._weights(layer)
            inputs += [] if layer.residual is None else [self._c4[layer.residual.key]]
        if isinstance(layer, Scale):
            inputs.append(self._values[layer.by])
        return inputs

    def _weights(self, layer: Weighted) -> list[ir.Value]:
        """What SparseConv and SparseLinear read after x."""
        packed = pack(layer.weights)
        stored: dict[str, NDArray[Any]] = {
            "mask": packed.mask,
            "values": packed.values,
            "scale": layer.scale,
            "bias": layer.bias,
        }
        return [self._constant(f"{layer.name}/sparse_{key}", value) for key, value in stored.items()]

    def _step(self, activation: QuantizedTensor) -> tuple[ir.Value, ir.Value]:
        """An activation's scale and u8 zero point."""
        stem = c4_name(activation)
        return (
            self._constant(f"{stem}_scale", np.array(activation.scale, np.float32)),
            self._constant(f"{stem}_zero_point", np.array(activation.zero_point, np.uint8)),
        )

    def _constant(self, name: str, value: NDArray[Any]) -> ir.Value:
        if name not in self._stored:
            self._stored[name] = ir.val(name, const_value=ir.tensor(value, name=name))
            self._graph.register_initializer(self._stored[name])
        return self._stored[name]

    def _reshape(
        self, after: ir.Node | None, source: ir.Value, target: str, sizes: list[int], *, name: str
    ) -> ir.Value:
        """All but the batch."""
        shape = self._constant(f"{target}_shape", np.array([-1, *sizes], np.int64))
        return self._node(after, "Reshape", [source, shape], target, name=name)

    def _node(
        self,
        after: ir.Node | None,
        kind: str,
        inputs: Sequence[ir.Value],
        output: str,
        attributes: Mapping[str, Any] | None = None,
        *,
        name: str,
        domain: str = "",
    ) -> ir.Value:
        """Insert a node of one output, and give that."""
        node = ir.node(kind, inputs, attributes, outputs=[ir.val(output)], name=name, domain=domain)
        self._insert(after, node)
        return node.outputs[0]

    def _insert(self, after: ir.Node | None, node: ir.Node) -> None:
        """Behind a node of the old graph and what was inserted there before; None is the beginning."""
        place = self._last.get(after, after)
        if place is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(place, node)
        self._last[after] = node

    def _replace(self, old: ir.Value, new: ir.Value) -> None:
        """Let everything read `new`, what is inserted from now on too."""
        self._values[str(old.name)] = new
        take_over(old, new)


def _is_image(source: ir.Value, read: QuantizedTensor) -> bool:
    """Is an activation an input of the model that our operation quantizes itself, in the layout in which it comes?"""
    images = not read.channels_last and len(read.shape) == len(("channels", "height", "width"))
    return images and source.is_graph_input() and source.dtype == ir.DataType.FLOAT


def from_c4_attributes(activation: QuantizedTensor) -> dict[str, int]:
    """Of the node that brings an activation back to [N, height, width, channels]."""
    height, width = activation.size
    return {"channels": activation.channels, "height": height, "width": width}


def needed_outside(value: ir.Value, activation: QuantizedTensor, layers: Sequence[Operation]) -> list[ir.Node]:
    """The DequantizeLinear nodes of an activation that anything but `layers` reads.

    Args:
        value: The quantized tensor in the graph of the layers.
        activation: The same.
        layers: That will not read it any more.
    """
    inside = {
        node for layer in layers if any(read.key == activation.key for read in layer.reads) for node in layer.nodes
    }

    def is_needed(restored: ir.Value) -> bool:
        return restored.is_graph_output() or any(reader not in inside for reader in readers(restored))

    return [restore for restore in readers(value) if is_needed(restore.outputs[0])]


def c4_name(activation: QuantizedTensor) -> str:
    """What an activation's C4 form is called; nodes of its borders begin so, "..._enter" and "..._leave"."""
    return f"{activation.name}_{'tokens' if activation.channels_last else 'c4'}"
