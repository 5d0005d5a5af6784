"""Which channels of an fp32 graph can be scaled, see `scaling`: one rule per operator that lets them through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import Array, constant, operand, optional, scalar, sizes
from deploypruner.quantize.scaling import Labels, Scalable, Scaled

_SAME = (
    *("Relu", "LeakyRelu", "PRelu", "Identity", "Dropout", "Resize"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
)


def scalable_channels(graph: ir.Graph) -> Scalable:
    """Follow the channels of every tensor through an fp32 graph with sorted nodes and inferred shapes."""
    walk = _Labelling(graph)
    for node in graph:
        rule = _RULES.get(node.op_type, _other) if node.domain in ("", "ai.onnx") else _other
        rule(walk, node)
    for value in graph.outputs:
        walk.freeze(value)
    return walk.result()


@dataclass
class _Labelling:
    """Labels as they are found; those that turn out to be one are united."""

    graph: ir.Graph
    parent: list[int] = field(default_factory=list)
    frozen: set[int] = field(default_factory=set)
    bounds: dict[int, float] = field(default_factory=dict)
    known: dict[ir.Value, tuple[Labels, int]] = field(default_factory=dict)
    changes: list[Scaled] = field(default_factory=list)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def new(self, count: int) -> Labels:
        first = len(self.parent)
        self.parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def unite(self, a: Labels, b: Labels) -> None:
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self.parent[self.root(one)] = self.root(other)

    def freeze(self, value: ir.Value | None) -> None:
        if value in self.known:
            self.frozen.update(self.known[value][0].tolist())

    def get(self, value: ir.Value | None) -> tuple[Labels, int] | None:
        return None if value is None else self.known.get(value)

    def give(self, value: ir.Value, labels: Labels, axis: int) -> None:
        self.known[value] = (labels, axis)
        if any(user.graph is not self.graph for user in value.consumers()):  # inside of an If
            self.freeze(value)

    def own(self, value: ir.Value | None) -> Array | None:
        """What is stored for one reader alone; shared weights would have to serve two factors."""
        if value is None or not value.is_initializer() or len(value.uses()) != 1 or value.is_graph_output():
            return None
        return constant(value)

    def result(self) -> Scalable:
        count = len(self.parent)
        roots = np.array([self.root(label) for label in range(count)], np.int64)
        free, bounds = np.ones(count, bool), np.full(count, np.inf)
        free[[int(roots[label]) for label in self.frozen]] = False
        for label, bound in self.bounds.items():
            bounds[roots[label]] = min(bounds[roots[label]], bound)
        together = _Labelling(self.graph, list(range(count)))
        labels = {str(value.name): roots[own] for value, (own, _) in self.known.items()}
        for own in labels.values():
            movable = own[free[own]]
            if movable.size:
                together.unite(movable, np.full_like(movable, movable[0]))
        used = {label for own in labels.values() for label in own[free[own]].tolist()}
        groups = np.array([together.root(label) if label in used else -1 for label in range(count)], np.int64)
        axes = {str(value.name): axis for value, (_, axis) in self.known.items()}
        return Scalable(labels, axes, free, bounds, self.changes, groups)


Rule = Callable[[_Labelling, ir.Node], None]


def _other(walk: _Labelling, node: ir.Node) -> None:
    """Anything that is not homogeneous in its channels: they keep their scale before it, and begin anew behind."""
    for value in node.inputs:
        walk.freeze(value)


def _convolution(walk: _Labelling, node: ir.Node) -> None:
    x, weight, bias = operand(node, 0), walk.own(operand(node, 1)), optional(node, 2)
    groups, transposed = node.attributes.get_int("group", 1), node.op_type == "ConvTranspose"
    if weight is None or (transposed and groups > 1):
        return _other(walk, node)
    name = str(operand(node, 1).name)
    if walk.get(x) is not None:
        walk.changes.append(Scaled(name, str(x.name), 0 if transposed else 1, True, groups))
    return _makes(
        walk, node, name, axis=1 if transposed else 0, count=weight.shape[1 if transposed else 0], bias=bias
    )


def _makes(walk: _Labelling, node: ir.Node, weight: str, *, axis: int, count: int, bias: ir.Value | None) -> None:
    """Begin new channels at the output of a layer with weights, unless its bias cannot follow."""
    held = walk.own(bias)
    if bias is not None and (held is None or held.shape != (count,)):
        return
    output = node.outputs[0]
    rank = len(output.shape) if output.shape is not None else 0
    if not rank:
        return
    walk.give(output, walk.new(count), rank - 1 if node.op_type == "MatMul" else 1)
    walk.changes.append(Scaled(weight, str(output.name), axis, False))
    if bias is not None:
        walk.changes.append(Scaled(str(bias.name), str(output.name), 0, False))


def _product(walk: _Labelling, node: ir.Node) -> None:
    """Gemm and MatMul with stored weights [K, O], or [O, K] where transposed."""
    x, weight = operand(node, 0), walk.own(operand(node, 1))
    transposed = node.attributes.get_int("transB", 0) == 1
    found = walk.get(x)
    if weight is None or weight.ndim != 2 or node.attributes.get_int("transA", 0) != 0:
        return _other(walk, node)
    name = str(operand(node, 1).name)
    reads = 1 if transposed else 0
    if found is not None:
        if found[1] == len(x.shape or ()) - 1 and len(found[0]) == weight.shape[reads]:
            walk.changes.append(Scaled(name, str(x.name), reads, True))
        else:
            walk.freeze(x)
    bias = optional(node, 2)
    return _makes(walk, node, name, axis=1 - reads, count=weight.shape[1 - reads], bias=bias)


def _normalised(walk: _Labelling, node: ir.Node) -> None:
    """LayerNormalization over the last axis: its scale and bias make the channels."""
    x, scale, bias = operand(node, 0), walk.own(operand(node, 1)), optional(node, 2)
    walk.freeze(x)
    rank = len(x.shape or ())
    held = walk.own(bias)
    if scale is None or scale.ndim != 1 or node.attributes.get_int("axis", -1) not in (-1, rank - 1) or not rank:
        return
    if bias is not None and (held is None or held.shape != scale.shape):
        return
    output = node.outputs[0]
    walk.give(output, walk.new(len(scale)), rank - 1)
    for value in (operand(node, 1), bias):
        if value is not None:
            walk.changes.append(Scaled(str(value.name), str(output.name), 0, False))


def _same(walk: _Labelling, node: ir.Node) -> None:
    found, before, after = walk.get(node.inputs[0]), sizes(operand(node, 0)), sizes(node.outputs[0])
    cropped = node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize"
    if found is None or cropped or before is None or after is None or before[found[1]] != after[found[1]]:
        return _other(walk, node)
    if found[1] != 1 and "Pool" in node.op_type:
        return _other(walk, node)
    return walk.give(node.outputs[0], *found)


def _clip(walk: _Labelling, node: ir.Node) -> None:
    found, low, high = walk.get(node.inputs[0]), optional(node, 1), optional(node, 2)
    least = None if low is None else scalar(constant(low))
    most = None if high is None else scalar(constant(high))
    if found is None or low is None or least != 0 or (high is not None and (most is None or most <= 0)):
        return _other(walk, node)
    if most is not None:
        for label in found[0].tolist():
            walk.bounds[label] = min(most, walk.bounds.get(label, np.inf))
    return walk.give(node.outputs[0], *found)


def _sum(walk: _Labelling, node: ir.Node) -> None:
    """Add and Sub: channels that are added have one factor; a stored operand changes with them."""
    a, b = operand(node, 0), operand(node, 1)
    one, other, output = walk.get(a), walk.get(b), node.outputs[0]
    if len(node.inputs) != 2:  # Min and Max take any number
        return _other(walk, node)
    if one is not None and other is not None:
        if one[1] == other[1] and len(one[0]) == len(other[0]) and len(a.shape or ()) == len(b.shape or ()):
            walk.unite(one[0], other[0])
            return walk.give(output, *one)
        return _other(walk, node)
    x, found, term = (a, one, b) if one is not None else (b, other, a)
    values = walk.own(term)
    if found is None or values is None:
        return _other(walk, node)
    axis = found[1] - len(x.shape or ()) + values.ndim
    if (
        values.ndim > len(x.shape or ())
        or axis < 0
        or values.shape[axis] != len(found[0])
        or values.dtype.kind != "f"
    ):
        return _other(walk, node)
    walk.changes.append(Scaled(str(term.name), str(x.name), axis, False))
    return walk.give(output, *found)


def _least_or_most(walk: _Labelling, node: ir.Node) -> None:
    """Min and Max: as a sum, for min(x / d, b / d) = min(x, b) / d; a bound for each channel changes with it.

    One bound for all channels is a clip's: Max with 0 is a relu, Min with B leaves what stays below it.
    """
    a, b = operand(node, 0), operand(node, 1)
    x, bound = (b, constant(a)) if walk.get(a) is None else (a, constant(b))
    found = walk.get(x)
    if found is None or bound is None or len(node.inputs) != 2:
        return _sum(walk, node)
    if not bound.any() and sizes(x) == sizes(node.outputs[0]):
        return walk.give(node.outputs[0], *found)
    if bound.size > 1:
        return _sum(walk, node)
    if node.op_type == "Max" or not float(bound.reshape(())) > 0:
        return _other(walk, node)
    for label in found[0].tolist():
        walk.bounds[label] = min(float(bound.reshape(())), walk.bounds.get(label, np.inf))
    return walk.give(node.outputs[0], *found)


def _scaled(walk: _Labelling, node: ir.Node) -> None:
    """Mul and Div: homogeneous in one operand while the other stays as it is, a constant or a gate."""
    a, b = operand(node, 0), operand(node, 1)
    after = sizes(node.outputs[0])
    candidates = [(a, b)] if node.op_type == "Div" else [(a, b), (b, a)]
    for x, other in candidates:
        found, before = walk.get(x), sizes(x)
        if found is None or before is None or after is None or len(before) != len(after):
            continue
        if before[found[1]] == after[found[1]] and (constant(other) is not None or sizes(other) != after):
            walk.freeze(other)
            return walk.give(node.outputs[0], *found)
    return _other(walk, node)


def _concat(walk: _Labelling, node: ir.Node) -> None:
    after = sizes(node.outputs[0])
    found = [walk.get(value) for value in node.inputs]
    axes = {own[1] for own in found if own is not None}
    if after is None or len(axes) != 1:
        return _other(walk, node)
    (axis,) = axes
    if node.attributes.get_int("axis", 0) % len(after) != axis:
        return _other(walk, node)
    parts = []
    for value, own in zip(node.inputs, found, strict=True):
        shape = None if value is None else sizes(value)
        width = None if shape is None else shape[axis]
        if own is None and width is None:
            return _other(walk, node)
        labels = own[0] if own is not None else walk.new(width or 0)
        if own is None:
            walk.frozen.update(labels.tolist())
        parts.append(labels)
    return walk.give(node.outputs[0], np.concatenate(parts), axis)


def _split(walk: _Labelling, node: ir.Node) -> None:
    found = walk.get(operand(node, 0))
    widths = [(sizes(value) or ())[found[1] : found[1] + 1] for value in node.outputs] if found is not None else []
    if found is None or not all(width and width[0] is not None for width in widths):
        return _other(walk, node)
    rank = len(operand(node, 0).shape or ())
    if node.attributes.get_int("axis", 0) % rank != found[1]:
        for value in node.outputs:
            walk.give(value, *found)
        return None
    begin = 0
    for value, width in zip(node.outputs, widths, strict=True):
        walk.give(value, found[0][begin : begin + int(width[0] or 0)], found[1])
        begin += int(width[0] or 0)
    return None


def _pad(walk: _Labelling, node: ir.Node) -> None:
    """Zeros, or values that are there; channels of zeros have any factor."""
    found, pads = walk.get(node.inputs[0]), constant(optional(node, 1))
    value = optional(node, 2)
    zeros = (
        node.attributes.get_string("mode", "constant") != "constant" or value is None or scalar(constant(value)) == 0
    )
    rank = len(operand(node, 0).shape or ())
    if found is None or pads is None or not zeros or len(pads) != 2 * rank:
        return _other(walk, node)
    before, behind = int(pads[found[1]]), int(pads[found[1] + rank])
    if min(before, behind) < 0:
        return _other(walk, node)
    labels = np.concatenate([walk.new(before), found[0], walk.new(behind)])
    return walk.give(node.outputs[0], labels, found[1])


def _reshaped(walk: _Labelling, node: ir.Node) -> None:
    """Flatten, Reshape, Squeeze: channels stay an axis of their own, or each becomes a run of columns."""
    found, before, after = walk.get(node.inputs[0]), sizes(operand(node, 0)), sizes(node.outputs[0])
    if found is None or found[1] != 1 or before is None or after is None or len(after) < 2 or after[0] != before[0]:
        return _other(walk, node)
    if after[1] == before[1]:
        return walk.give(node.outputs[0], found[0], 1)
    inner = before[2:]
    run = None if None in inner else int(np.prod([size or 0 for size in inner]))
    if len(after) == 2 and run and after[1] == len(found[0]) * run:
        return walk.give(node.outputs[0], np.repeat(found[0], run), 1)
    return _other(walk, node)


def _slice(walk: _Labelling, node: ir.Node) -> None:
    """Along other axes than that of the channels."""
    found, axes = walk.get(node.inputs[0]), constant(optional(node, 3))
    rank = len(operand(node, 0).shape or ())
    if found is None or axes is None or found[1] in {int(axis) % rank for axis in axes}:
        return _other(walk, node)
    return walk.give(node.outputs[0], *found)


def _transpose(walk: _Labelling, node: ir.Node) -> None:
    found, order = walk.get(node.inputs[0]), node.attributes.get_ints("perm", ())
    if found is None or not order:
        return _other(walk, node)
    return walk.give(node.outputs[0], found[0], list(order).index(found[1]))


def _mean(walk: _Labelling, node: ir.Node) -> None:
    found, rank = walk.get(node.inputs[0]), len(operand(node, 0).shape or ())
    given = constant(optional(node, 1))
    taken = list(node.attributes.get_ints("axes", ())) if given is None else given.tolist()
    axes = {int(axis) % rank for axis in taken} if rank else set()
    if found is None or not axes or found[1] in axes:
        return _other(walk, node)
    kept = bool(node.attributes.get_int("keepdims", 1))
    return walk.give(node.outputs[0], found[0], found[1] - (0 if kept else sum(axis < found[1] for axis in axes)))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("Gemm", "MatMul"), _product),
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Min", "Max"), _least_or_most),
    **dict.fromkeys(("Mul", "Div"), _scaled),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze"), _reshaped),
    **dict.fromkeys(("ReduceMean", "ReduceMax"), _mean),
    **{"LayerNormalization": _normalised, "Clip": _clip, "Concat": _concat, "Split": _split},
    **{"Pad": _pad, "Slice": _slice, "Transpose": _transpose},
}
