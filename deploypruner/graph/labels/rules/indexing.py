"""Operators that pick indices of an axis, and those that rearrange channels into space or back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.fx import Node

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.atoms import IntArray, Labels
from deploypruner.graph.labels.lazy_axes import Dissolved
from deploypruner.graph.labels.rules import rule
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import op_name, positive, shape_of, writes_into

_COPIES = ("alias", "detach", "clone", "to", "_to_copy", "lift_fresh_copy")


@rule("slice")
def slice_(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Any]:
    """A range of one axis."""
    values = tracing.raw(node.args[0])
    d = positive(args["dim"], len(values))
    if values[d] is None:
        return values
    labels = tracing.axes(node.args[0])[d]
    if isinstance(args["start"], Node) or isinstance(args["end"], Node):
        tracing.freeze(labels, "cut at positions that are computed while it runs")
        values[d] = None
        return values
    step = args["step"] or 1
    if step != 1 and any(writes_into(user, node) for user in node.users):
        # Rewritten, it would be a gather, which is a copy: the write would be lost.
        tracing.freeze(labels, "every n-th channel is overwritten in place")
    values[d] = None if labels is None else labels[slice(args["start"], args["end"], step)]
    return values


@rule("select")
def select(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """One index of an axis, which must therefore stay where it is."""
    labels = tracing.axes(node.args[0])
    d = positive(args["dim"], len(labels))
    tracing.freeze(labels[d], "one position of this axis is picked by its number")
    return labels[:d] + labels[d + 1 :]


@rule("unbind")
def unbind(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[list[Labels]]:
    """Every index of an axis becomes a tensor of its own."""
    labels = tracing.axes(node.args[0])
    d = positive(args["dim"], len(labels))
    tracing.freeze(labels[d], "taken apart position by position")
    return [labels[:d] + labels[d + 1 :] for _ in node.meta["val"]]


@rule("index")
def index(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Advanced indexing: indexed axes and everything on the indices stay; other axes pass."""
    indices = args["indices"]
    used = [i for i, t in enumerate(indices) if t is not None]
    if len(used) == 1 and (chosen := _constant(tracing, indices[used[0]])) is not None:
        return _choose(tracing, node, used[0], chosen)
    labels = tracing.axes(node.args[0])
    for i in used:
        tracing.freeze(labels[i], "looked up by an index tensor")
        tracing.freeze_all(indices[i], "holds positions in another tensor")
    new = len(shape_of(node)) - (len(labels) - len(used))
    consecutive = used == list(range(used[0], used[-1] + 1))
    lead = used[0] if consecutive else 0
    rest = [axis for i, axis in enumerate(labels) if i not in used]
    return rest[:lead] + [None] * new + rest[lead:]


@rule("index_select")
def index_select(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Indices of one axis given by a tensor."""
    labels = tracing.axes(node.args[0])
    d = positive(args["dim"], len(labels))
    chosen = _constant(tracing, args["index"])
    if chosen is not None:
        return _choose(tracing, node, d, chosen)
    tracing.freeze(labels[d], "picked by an index tensor")
    tracing.freeze_all(args["index"], "holds positions in another tensor")
    labels[d] = None
    return labels


def _choose(tracing: Tracing, node: Node, axis: int, chosen: IntArray) -> list[Labels]:
    """Fixed indices of one axis: what is left of them is picked out of what is left of the axis."""
    source = node.args[0]
    assert isinstance(source, Node), "indexing has a tensor argument"
    out = tracing.axes(source)
    labels = out[axis]
    if labels is not None:
        out[axis] = labels[chosen]
        tracing.dissolved[node] = Dissolved((source, axis), axis, chosen % len(labels), None)
    return out


def _constant(tracing: Tracing, node: Any) -> IntArray | None:
    """The values of a constant list of distinct indices, None for anything else.

    A table that is looked up many times per entry (relative positions) is not cut: its indices belong to tokens.
    """
    while isinstance(node, Node) and op_name(node) in _COPIES:
        node = node.args[0]
    if not isinstance(node, Node) or node.op != "get_attr" or any(writes_into(user, node) for user in node.users):
        return None
    tensor = get_state(tracing.module, str(node.target))
    if tensor.ndim != 1 or tensor.dtype not in (torch.int64, torch.int32) or tensor.numel() < 2:
        return None
    values: IntArray = tensor.cpu().numpy().astype(np.int64)
    return values if len(np.unique(values)) == len(values) else None


@rule("gather")
def gather(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """out[i, j] = x[index[i, j], j]: other axes of x and index vanish together where they have one length."""
    labels, indices = tracing.axes(node.args[0]), tracing.axes(args["index"])
    shape, index_shape = shape_of(node.args[0]), shape_of(args["index"])
    d = positive(args["dim"], len(labels))
    for i in range(len(labels)):
        if i == d or shape[i] != index_shape[i]:
            tracing.freeze(labels[i], "gathered by an index tensor")
            tracing.freeze(indices[i], "gathered by an index tensor")
            labels[i] = None
        else:
            labels[i] = tracing.unify(labels[i], indices[i], "gathered by an index tensor of fixed size")
    return labels


@rule("embedding")
def embedding(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Rows of a table: the vocabulary stays, the columns may shrink."""
    weight = tracing.axes(node.args[0])
    tracing.freeze(weight[0], "vocabulary of an embedding")
    tracing.role(node.args[0], 1, "producer")
    return [*tracing.axes(node.args[1]), weight[1]]


@rule("pixel_shuffle")
def pixel_shuffle(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Channels (c, r, r) become space: whole blocks of r * r channels vanish together."""
    labels, shape, factor = tracing.axes(node.args[0]), shape_of(node.args[0]), args["upscale_factor"]
    channel, block = tracing.atoms.split(labels[-3], [shape[-3] // factor**2, factor**2])
    tracing.freeze(block, "channels that a pixel shuffle turns into pixels")
    return [*labels[:-3], channel, None, None]


@rule("pixel_unshuffle")
def pixel_unshuffle(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Space becomes channels: each channel turns into r * r consecutive ones."""
    labels, shape, factor = tracing.axes(node.args[0]), shape_of(node.args[0]), args["downscale_factor"]
    return [*labels[:-3], tracing.atoms.flatten([labels[-3], None], [shape[-3], factor**2]), None, None]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """A fixed permutation of the channels."""
    source = node.args[0]
    assert isinstance(source, Node), "channel_shuffle has a tensor argument"
    labels, channels = tracing.axes(source), shape_of(source)[1]
    permutation = np.arange(channels).reshape(args["groups"], -1).T.reshape(-1)
    axis = labels[1]
    if axis is not None:
        labels[1] = axis[permutation]
        tracing.dissolved[node] = Dissolved((source, 1), 1, permutation, None)
    return labels


@rule("im2col")
def im2col(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Windows become channels: each channel turns into k * k consecutive ones."""
    labels, shape = tracing.axes(node.args[0]), shape_of(node.args[0])
    window = shape_of(node)[-2] // shape[-3]
    return [*labels[:-3], tracing.atoms.flatten([labels[-3], None], [shape[-3], window]), None]


@rule("col2im")
def col2im(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Channels (c, k, k) become windows: whole blocks vanish together."""
    labels, shape, out = tracing.axes(node.args[0]), shape_of(node.args[0]), shape_of(node)
    channel, block = tracing.atoms.split(labels[-2], [out[-3], shape[-2] // out[-3]])
    tracing.freeze(block, "channels that a fold turns into pixels")
    return [*labels[:-2], channel, None, None]


@rule("unfold")
def unfold(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Overlapping windows along one axis."""
    labels = tracing.axes(node.args[0])
    d = positive(args["dimension"], len(labels))
    tracing.freeze(labels[d], "cut into overlapping windows")
    labels[d] = None
    return [*labels, None]
