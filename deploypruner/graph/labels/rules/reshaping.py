"""Operators that split, merge, move and concatenate axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from deploypruner.graph.labels.atoms import IntArray, Labels
from deploypruner.graph.labels.lazy_axes import Axis, Dissolved, Joint, JointAxis
from deploypruner.graph.labels.rules import rule
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import SPLITS, is_tensor, op_name, positive, shape_of, size_hint

# A channel shuffle is view, transpose, contiguous, view; longer chains between split and merge are not looked at.
_MAX_CHAIN = 8


@rule(
    *("view", "reshape", "_unsafe_view", "flatten", "unflatten"),
    sizes={"view": "size", "_unsafe_view": "size", "reshape": "shape"},
)
def view(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """Match input and output axes into the smallest blocks of equal length, then merge and split inside each."""
    source = node.args[0]
    assert isinstance(source, Node), "a view has a tensor argument"
    in_shape, out_shape = shape_of(source), shape_of(node)
    values, out = tracing.raw(source), [None] * len(out_shape)
    out_axes: list[Axis] = list(out)
    for inputs, outputs in _blocks(in_shape, out_shape):
        if all(values[i] is None for i in inputs):
            continue
        if len(inputs) == len(outputs) == 1:
            out_axes[outputs[0]] = values[inputs[0]]
            continue
        merged = _merge(tracing, node, (source, inputs), outputs)
        if len(outputs) == 1:
            out_axes[outputs[0]] = merged.labels
        else:
            for axis, value in zip(outputs, _split(tracing, merged, [out_shape[o] for o in outputs]), strict=True):
                out_axes[axis] = value
    return out_axes


@rule("view_as", "reshape_as")
def view_as(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """A view to the shape of another tensor, which must then keep that shape."""
    out = [a.labels() if isinstance(a, JointAxis) else a for a in view(tracing, node, args)]
    return [
        tracing.unify(mine, theirs, "reshaped to the shape of a tensor of fixed size")
        for mine, theirs in zip(out, tracing.axes(node.args[1]), strict=True)
    ]


class _Merged:
    """Labels of several input axes merged into one, and where each position came from."""

    def __init__(self, labels: Labels, index: IntArray | None, source: tuple[Node, int] | None) -> None:
        self.labels, self.index, self.source = labels, index, source


def _blocks(in_shape: Sequence[int], out_shape: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Pairs of axis lists with equal products; axes of length one belong to no block."""
    ins = [i for i, s in enumerate(in_shape) if s != 1]
    outs = [o for o, s in enumerate(out_shape) if s != 1]
    blocks = []
    while ins and outs:
        block_in, block_out = [ins.pop(0)], [outs.pop(0)]
        size_in, size_out = in_shape[block_in[0]], out_shape[block_out[0]]
        while size_in != size_out:
            if size_in < size_out:
                block_in.append(ins.pop(0))
                size_in *= in_shape[block_in[-1]]
            else:
                block_out.append(outs.pop(0))
                size_out *= out_shape[block_out[-1]]
        blocks.append((block_in, block_out))
    return blocks


def _merge(tracing: Tracing, node: Node, inputs: tuple[Node, list[int]], outputs: list[int]) -> _Merged:
    """Merge input axes row-major. A complete merge of one joint dissolves it, in whatever order."""
    source, axes = inputs
    values, shape = tracing.raw(source), shape_of(source)
    joint = _complete_joint([values[i] for i in axes])
    if joint is not None:
        order = [values[i].position for i in axes]  # type: ignore[union-attr]
        rest = [p for p in range(len(joint.sizes)) if p not in order]
        block = joint.block.transpose(*rest, *order, len(joint.sizes))
        index = joint.index.transpose(*rest, *order).reshape(-1)
        labels: Labels = block.reshape(-1, joint.block.shape[-1])
        if len(outputs) > 1:
            return _Merged(labels, index, joint.source)
        assert joint.source is not None, "a complete joint has a source"
        dissolved = Dissolved(joint.source, outputs[0], index, joint)
        if _is_gather(node, dissolved):
            tracing.dissolved[node] = dissolved
            return _Merged(labels, index, joint.source)
    forced = [a.labels() if isinstance(a, JointAxis) else a for a in (values[i] for i in axes)]
    labels = tracing.atoms.flatten(forced, [shape[i] for i in axes])
    return _Merged(labels, None, (source, axes[0]) if len(axes) == 1 else None)


def _complete_joint(values: list[Axis]) -> Joint | None:
    """The unforced joint of which `values` are all the axes (those longer than one), if there is one."""
    first = values[0]
    if not isinstance(first, JointAxis) or first.joint.axes is not None or first.joint.source is None:
        return None
    joint = first.joint
    if not all(isinstance(v, JointAxis) and v.joint is joint for v in values):
        return None
    positions = sorted(v.position for v in values if isinstance(v, JointAxis))
    return joint if positions == [p for p, size in enumerate(joint.sizes) if size > 1] else None


def _split(tracing: Tracing, merged: _Merged, sizes: list[int]) -> list[Axis]:
    """Split one labelled axis: what factors does so now, what does not stays joint."""
    labels = tracing.atoms.live(merged.labels)
    if labels is None:
        return [None] * len(sizes)
    block = labels.reshape(*sizes, -1)
    axes, residual = tracing.atoms.factor(block)
    if not residual.any():
        return list(axes)
    index = np.arange(len(labels)) if merged.index is None else merged.index
    joint = Joint(tracing.atoms, block, index.reshape(sizes), merged.source)
    return [JointAxis(joint, position) for position in range(len(sizes))]


def _is_gather(node: Node, dissolved: Dissolved) -> bool:
    """Is the chain from the split to here exactly an index_select? Found out by running it on an arange."""
    source, axis = dissolved.source
    shape = shape_of(source)
    if shape != shape_of(node) or axis != dissolved.axis:
        return False
    chain: list[Node] = []
    at: Any = node
    while at is not source:
        chain.append(at)
        at = at.args[0]
        if not isinstance(at, Node) or len(chain) > _MAX_CHAIN:
            return False
    start = torch.arange(int(np.prod(shape)), dtype=torch.int32).reshape(shape)
    result = start
    for step in reversed(chain):
        result = step.target(result, *[_concrete(a) for a in step.args[1:]])  # type: ignore[operator]
    return torch.equal(result, start.index_select(axis, torch.as_tensor(dissolved.permutation)))


def _concrete(argument: Any) -> Any:
    if isinstance(argument, list | tuple):
        return [_concrete(a) for a in argument]
    return size_hint(argument.meta["val"]) if isinstance(argument, Node) and not is_tensor(argument) else argument


# ---------------------------------------------------------------------- moving axes


@rule("permute")
def permute(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """Output axis i is input axis dims[i]."""
    values = tracing.raw(node.args[0])
    return [values[d] for d in args["dims"]]


@rule("transpose", "swapaxes", "swapdims")
def transpose(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """Two axes change places."""
    values = tracing.raw(node.args[0])
    _, first, second = args.values()
    a, b = positive(first, len(values)), positive(second, len(values))
    values[a], values[b] = values[b], values[a]
    return values


@rule("t", "numpy_T")
def reverse(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """All axes in reverse."""
    return tracing.raw(node.args[0])[::-1]


@rule("mT", "matrix_H", "mH", "adjoint")
def matrix_transpose(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """The last two axes change places."""
    values = tracing.raw(node.args[0])
    return [*values[:-2], values[-1], values[-2]]


@rule("movedim", "moveaxis")
def movedim(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """Axis source[i] goes to destination[i]; the others keep their order."""
    values = tracing.raw(node.args[0])
    pairs = [[args[k]] if isinstance(args[k], int) else list(args[k]) for k in ("source", "destination")]
    sources, targets = ([positive(d, len(values)) for d in dims] for dims in pairs)
    rest = iter(d for d in range(len(values)) if d not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return [values[moved[d] if d in moved else next(rest)] for d in range(len(values))]


@rule("unsqueeze")
def unsqueeze(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """A new axis of length one."""
    values = tracing.raw(node.args[0])
    values.insert(positive(args["dim"], len(values) + 1), None)
    return values


@rule("squeeze")
def squeeze(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Axis]:
    """Axes of length one disappear."""
    values, shape = tracing.raw(node.args[0]), shape_of(node.args[0])
    dims = args.get("dim")
    chosen = range(len(shape)) if dims is None else [dims] if isinstance(dims, int) else dims
    dropped = {positive(d, len(shape)) for d in chosen}
    return [v for d, v in enumerate(values) if not (d in dropped and shape[d] == 1)]


@rule("expand", "broadcast_to", sizes="size")
def expand(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """A repeated axis is new: it may shrink whatever it repeats."""
    labels, shape, out = tracing.axes(node.args[0]), shape_of(node.args[0]), shape_of(node)
    offset = len(out) - len(shape)
    return [
        tracing.atoms.fresh(size) if i < offset or shape[i - offset] != size else labels[i - offset]
        for i, size in enumerate(out)
    ]


@rule("meshgrid")
def meshgrid(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[list[Labels]]:
    """Every tensor along an axis of its own, repeated along those of the others."""
    axes = [tracing.axes(t)[0] if shape_of(t) else None for t in args["tensors"]]
    if args.get("indexing") == "xy":
        axes[:2] = axes[1::-1]
    return [list(axes) for _ in axes]


@rule("expand_as")
def expand_as(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Expanded to the shape of another tensor, which must then keep that shape."""
    theirs, shape = tracing.axes(node.args[1]), shape_of(node)
    return [
        tracing.unify(mine, other, "expanded to the shape of a tensor of fixed size") if size > 1 else None
        for mine, other, size in zip(expand(tracing, node, args), theirs, shape, strict=True)
    ]


@rule("repeat", "tile")
def repeat(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Copies one after another: index i of each copy vanishes together."""
    labels, shape, out = tracing.axes(node.args[0]), shape_of(node.args[0]), shape_of(node)
    offset = len(out) - len(shape)
    tiled: list[Labels] = [None] * offset
    for axis, size, new in zip(labels, shape, out[offset:], strict=True):
        tiled.append(None if axis is None else np.tile(axis, (new // size, 1)))
    return tiled


@rule("repeat_interleave")
def repeat_interleave(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """Each index several times in a row."""
    times, dim = args.get("repeats"), args.get("dim")
    if not isinstance(times, int) or dim is None:
        return tracing.fallback(node, "repeat_interleave by a tensor")
    labels = tracing.axes(node.args[0])
    d = positive(dim, len(labels))
    axis = labels[d]
    labels[d] = None if axis is None else np.repeat(axis, times, axis=0)
    return labels


# ---------------------------------------------------------------------- cutting and joining


@rule(*SPLITS)
def split(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[list[Labels]]:
    """Consecutive pieces of one axis."""
    labels = tracing.axes(node.args[0])
    d = positive(args["dim"] or 0, len(labels))
    axis, outputs, start = labels[d], [], 0
    for piece in node.meta["val"]:
        size = size_hint(piece.shape[d])
        cut = None if axis is None else axis[start : start + size]
        outputs.append([*labels[:d], cut, *labels[d + 1 :]])
        start += size
    return outputs


@rule("cat", "concat", "concatenate")
def cat(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """One axis after another; all other axes vanish together."""
    tensors = [t for t in args["tensors"] if shape_of(t) != [0]]
    parts = [tracing.axes(t) for t in tensors]
    d = positive(args["dim"] or 0, len(parts[0]))
    out = list(parts[0])
    for other in parts[1:]:
        for i in range(len(out)):
            if i != d:
                out[i] = tracing.unify(out[i], other[i], "beside a tensor of fixed size in a concatenation")
    out[d] = _concatenate([p[d] for p in parts], [shape_of(t)[d] for t in tensors])
    return out


@rule("hstack", "column_stack", "vstack", "row_stack")
def stacked(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """A concatenation along an axis that the name says."""
    if any(len(shape_of(t)) < 2 for t in args["tensors"]):
        return tracing.fallback(node, "vectors stacked to a matrix")
    return cat(tracing, node, {**args, "dim": 0 if op_name(node) in ("vstack", "row_stack") else 1})


@rule("stack")
def stack(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Tensors along a new axis, which cannot shrink."""
    parts = [tracing.axes(t) for t in args["tensors"]]
    out = list(parts[0])
    for other in parts[1:]:
        out = [tracing.unify(a, b, "stacked with a tensor of fixed size") for a, b in zip(out, other, strict=True)]
    out.insert(positive(args["dim"] or 0, len(out) + 1), None)
    return out


@rule("pad", "constant_pad_nd")
def pad(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Padding adds as many indices as are needed: new labels adopt what they meet.

    The zero-padded shortcuts of CIFAR ResNets shrink with the convolution they are added to.
    """
    labels, widths = tracing.axes(node.args[0]), list(args["pad"])
    constant = args.get("mode", "constant") == "constant"
    for i in range(len(widths) // 2):
        axis = len(labels) - 1 - i
        before, after = widths[2 * i : 2 * i + 2]
        rows = labels[axis]
        if rows is None or (before == 0 and after == 0):
            continue
        if constant and isinstance(before, int) and isinstance(after, int) and before >= 0 and after >= 0:
            parts = [tracing.atoms.fresh(before), rows, tracing.atoms.fresh(after)]
            labels[axis] = _concatenate(parts, [before, len(rows), after])
        else:
            tracing.freeze(rows, "padded by reflection or repetition")
            labels[axis] = None
    return labels


def _concatenate(parts: list[Labels], sizes: list[int]) -> Labels:
    """Label arrays one after another; an inert part has empty rows."""
    if all(p is None for p in parts):
        return None
    rows = [np.zeros((size, 1), np.int64) if p is None else p for p, size in zip(parts, sizes, strict=True)]
    width = max(r.shape[1] for r in rows)
    return np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]))) for r in rows])
