"""Bounds that differ from channel to channel, made one: relu6 again where ranges were hidden in the weights.

A channel behind relu6 can be divided by d only with its bound, min(max(x / d, 0), 6 / d). ONNX's Clip has one bound
for all channels, so such a network has Min with a stored tensor. The channels are scaled so that all bounds are
equal, and the pair becomes a Clip, which int8 kernels compute as a part of the layer before it. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper

from deploypruner.onnx_graph import Array, constant, made_by, optional, scalar, to_model
from deploypruner.quantize.homogeneous import scalable_channels
from deploypruner.quantize.scaling import Scalable, rescale


@dataclass(frozen=True)
class _Bounded:
    """A relu and a Min with a bound for each channel, in either order.

    Args:
        first: Name of the first of the two nodes.
        last: Of the second, whose output is bounded.
        bounds: Of the channels [C].
    """

    first: str
    last: str
    bounds: Array


def plain_clips(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """The same function with one bound for all channels wherever they can be scaled, and how many clips that made.

    Args:
        model: fp32, nodes named, sorted, shapes inferred.
    """
    held = ir.from_proto(model)
    found = scalable_channels(held.graph)
    factors, known = np.ones(len(found.free)), np.zeros(len(found.free), bool)
    clips: dict[str, tuple[_Bounded, float]] = {}
    for node in held.graph:
        bounded = _bounded(node, found)
        if bounded is None:
            continue
        labels = found.labels[str(node.outputs[0].name)]
        common = float(np.exp(np.log(bounded.bounds).mean()))
        wanted = bounded.bounds / common
        agreed = factors.copy()
        agreed[labels] = wanted
        same = np.array_equal(agreed[labels], wanted) and np.array_equal(agreed[known], factors[known])
        if same and found.free[labels].all() and not np.isfinite(found.bounds[labels]).any():
            factors, known[labels] = agreed, True
            clips[bounded.last] = bounded, common
    if not clips:
        return model, 0
    rescale(held.graph, found, factors)
    return _with_clips(to_model(held), clips), len(clips)


def _bounded(node: ir.Node, found: Scalable) -> _Bounded | None:
    """What a node bounds, if it is the second of a relu and a Min with stored bounds above 0."""
    made = [made_by(value, "Relu", "Clip", "Max", "Min") for value in node.inputs if value is not None]
    before = next(filter(None, made), None)
    if before is None or len(before.outputs[0].uses()) != 1 or before.outputs[0].is_graph_output():
        return None
    pair = {kind: one for one in (before, node) for kind in ("relu", "min") if _is(one, kind)}
    if len(pair) != 2:
        return None
    bounds = _stored(pair["min"])
    labels = found.labels.get(str(node.outputs[0].name))
    if bounds is None or labels is None or bounds.size not in (1, len(labels)) or not (bounds > 0).all():
        return None
    if bounds.size == 1 or not np.isfinite(bounds).all():
        return None  # one bound is a clip's already
    return _Bounded(str(before.name), str(node.name), bounds.reshape(-1).astype(float))


def _is(node: ir.Node, kind: str) -> bool:
    if kind == "min":
        return node.op_type == "Min" and len(node.inputs) == 2
    if node.op_type == "Clip":
        low = optional(node, 1)
        return low is not None and scalar(constant(low)) == 0 and optional(node, 2) is None
    stored = _stored(node)
    return node.op_type == "Relu" or (node.op_type == "Max" and stored is not None and not stored.any())


def _stored(node: ir.Node) -> Array | None:
    """The constant among two operands."""
    return next((held for value in node.inputs if (held := constant(value)) is not None), None)


def _with_clips(model: onnx.ModelProto, clips: Mapping[str, tuple[_Bounded, float]]) -> onnx.ModelProto:
    """Each pair of nodes as one Clip, under the name and the output of the second."""
    nodes = {node.name: node for node in model.graph.node}
    stored = {tensor.name for tensor in model.graph.initializer}
    for last, (pair, bound) in clips.items():
        first, second = nodes[pair.first], nodes[last]
        (x,) = (name for name in first.input if name not in stored)
        names = [f"{second.output[0]}_{end}" for end in ("low", "high")]
        for name, value in zip(names, (0.0, bound), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
        second.op_type = "Clip"
        second.input[:] = [x, *names]
        model.graph.node.remove(first)
    read = {name for node in model.graph.node for name in node.input}
    for tensor in [tensor for tensor in model.graph.initializer if tensor.name not in read]:
        model.graph.initializer.remove(tensor)
    return model
