"""q, k and v of one layer, reshaped apart: cut before the reshape instead of after it.

Attention often computes q, k and v in one layer, reshapes its output to (.., 3, heads, columns) and takes the axis of
three apart. That one tensor must stay a box, so a column removed from v would have to leave q and k as well. But the
axis of three is only carried along until each of its indices goes its own way. Cut the layer's output before the
reshape and the three are tensors of their own, with the same values and strides, and v's columns are free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from operator import getitem

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument

from deploypruner.graph.nodes import arguments, is_tensor, op_name, positive, set_argument, shape_of, writes_into

aten = torch.ops.aten

# An axis of more indices holds tokens, channels or windows, not the parts of one projection.
_MOST_PARTS = 8
_VIEWS = {"view": "size", "_unsafe_view": "size", "reshape": "shape", "unflatten": "sizes"}
_KEEPS_AXES = frozenset(("contiguous", "clone", "detach", "alias", "to", "_to_copy"))
_MOVES_AXES = frozenset("permute transpose swapaxes swapdims movedim moveaxis mT unsqueeze squeeze select".split())


@dataclass(frozen=True)
class _Parts:
    """An axis of parts that nothing needs as an axis.

    Args:
        view: The view that splits it off one axis of its source.
        axis: Its place in the view's output; axes `axis` to `last` of the output come out of one source axis.
        last: See `axis`.
        carriers: The nodes that carry the axis, the view included -> its place there.
        ends: The selects and unbinds that take it apart -> its place in what they read.
    """

    view: Node
    axis: int
    last: int
    carriers: dict[Node, int]
    ends: dict[Node, int]

    @property
    def sizes(self) -> list[int]:
        """Number of parts, and the lengths of the axes inside one part."""
        return shape_of(self.view)[self.axis : self.last + 1]


def untie(module: GraphModule, graph: Graph | None = None) -> int:
    """Cut tensors before the view that ties their parts together; all outputs stay bit-equal.

    Args:
        module: An exported graph with `val` metadata; changed in place.
        graph: The graph to change, None for the module's own.

    Returns:
        How many views were taken apart.
    """
    graph = graph or module.graph
    found = [parts for node in graph.nodes if (parts := _find(node)) is not None]
    for parts in found:
        _take_apart(graph, parts)
    if found:
        graph.eliminate_dead_code()
        graph.lint()
        module.recompile()
    return len(found)


# ---------------------------------------------------------------------- finding


def _find(view: Node) -> _Parts | None:
    """The parts that `view` splits off, where each of them goes its own way in the end."""
    if op_name(view) not in _VIEWS or not is_tensor(view.args[0]):
        return None
    shape = shape_of(view)
    for source_axis, first, last in _split_axes(shape_of(view.args[0]), shape):
        for axis in range(first, last):
            # The innermost axis is left alone: its parts are strides of the source axis, not stretches.
            if not 2 <= shape[axis] <= _MOST_PARTS or prod(shape[axis + 1 : last + 1]) < 2:
                continue
            if not _is_constant(view, source_axis, (axis, last)):
                continue
            parts = _Parts(view, axis, last, {view: axis}, {})
            if _follow(parts, view) and parts.ends:
                return parts
    return None


def _is_constant(view: Node, source_axis: int, stretch: tuple[int, int]) -> bool:
    """Have these axes of the view's output the same lengths at every batch size?

    Lengths written as numbers have, and -1 stands for one where the source axis holds a layer's outputs.
    """
    args = arguments(view)
    first = positive(args["dim"], len(shape_of(view.args[0]))) if op_name(view) == "unflatten" else 0
    written = list(args[_VIEWS[op_name(view)]])[stretch[0] - first : stretch[1] + 1 - first]
    if any(isinstance(size, Node) for size in written):
        return False
    if -1 not in written:
        return True
    source = view.args[0]
    while isinstance(source, Node) and op_name(source) in _KEEPS_AXES:
        source = source.args[0]
    assert isinstance(source, Node), "a view has a tensor argument"
    if op_name(source) == "linear":
        return source_axis == len(shape_of(source)) - 1
    return source_axis == 1 and op_name(source) in ("conv1d", "conv2d", "conv3d", "batch_norm")


def _split_axes(before: list[int], after: list[int]) -> list[tuple[int, int, int]]:
    """(axis of a view's input, first, last): stretches of its output that come out of exactly one axis."""
    ends = {prod(after[: place + 1]): place for place in reversed(range(len(after)))}
    found = []
    for axis, size in enumerate(before):
        left, right = prod(before[:axis]), prod(before[: axis + 1])
        if size > 1 and right in ends and (left == 1 or left in ends):
            first = ends[left] + 1 if left > 1 else 0
            while after[first] == 1:
                first += 1
            if first < ends[right]:
                found.append((axis, first, ends[right]))
    return found


def _follow(parts: _Parts, node: Node) -> bool:
    """From `node` on, is the axis only moved about and then taken apart, one constant index at a time?"""
    axis = parts.carriers[node]
    for user in node.users:
        if not isinstance(user.target, torch._ops.OpOverload) or user.args[0] is not node or writes_into(user, node):
            return False
        name, args = op_name(user), arguments(user)
        if name in ("select", "unbind") and positive(args["dim"], len(shape_of(node))) == axis:
            if not isinstance(args.get("index", 0), int):
                return False
            parts.ends[user] = axis
            continue
        place = _moved(user, axis)
        if place is None:
            return False
        parts.carriers[user] = place
        if not _follow(parts, user):
            return False
    return True


def _moved(node: Node, axis: int) -> int | None:
    """Where a node that only rearranges axes puts `axis`; None for any other node."""
    name, before = op_name(node), shape_of(node.args[0])
    if name in _KEEPS_AXES:
        return axis
    if name in _VIEWS:
        after, left = shape_of(node), prod(before[:axis])
        places = (p for p, size in enumerate(after) if size == before[axis] and prod(after[:p]) == left)
        return next(places, None)
    if name not in _MOVES_AXES or any(isinstance(argument, Node) for argument in node.args[1:]):
        return None
    if name == "squeeze" and axis in _squeezed(node, len(before)):
        return None  # it does nothing to several parts, but would drop the axis of one
    # Move a tensor on which only this axis has stride one.
    probe = torch.empty_strided(before, [int(d == axis) for d in range(len(before))], device="meta")
    return node.target(probe, *node.args[1:], **node.kwargs).stride().index(1)  # type: ignore[operator]


def _squeezed(node: Node, rank: int) -> set[int]:
    dims = arguments(node).get("dim")
    chosen = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    return {positive(d, rank) for d in chosen}


# ---------------------------------------------------------------------- rewriting


def _take_apart(graph: Graph, parts: _Parts) -> None:
    """Carry each part on its own from the view on, and give it to whoever selected it."""
    nodes = [node for node in graph.nodes if node in parts.carriers or node in parts.ends]
    pieces = _pieces(graph, parts)
    chains: list[dict[Node, Node]] = [{parts.view: piece} for piece in pieces]
    for node in nodes:
        if node in parts.ends:
            _deliver(graph, node, parts.ends[node], chains)
        elif node is not parts.view:
            for chain in chains:
                chain[node] = _carry(graph, node, parts.carriers[node], chain)
            _evaluate([chain[node] for chain in chains])


def _pieces(graph: Graph, parts: _Parts) -> list[Node]:
    """What `parts.view` gives, one part at a time: its source, split down to the parts only, cut, split further."""
    view, (count, *inner) = parts.view, parts.sizes
    whole = _down_to_parts(graph, parts)
    cut = _insert(graph, view, aten.split_with_sizes.default, (whole, [prod(inner)] * count, parts.axis))
    stretches = [_insert(graph, view, getitem, (cut, part)) for part in range(count)]
    pieces = [_insert(graph, view, aten.unflatten.int, (s, parts.axis, [1, *inner])) for s in stretches]
    for alike in ([cut], stretches, pieces):
        _evaluate(alike)
    return pieces


def _down_to_parts(graph: Graph, parts: _Parts) -> Node:
    """The view with its axes from the parts inwards merged: (3, heads, columns) is the source itself."""
    view, source, args = parts.view, parts.view.args[0], arguments(parts.view)
    assert isinstance(source, Node), "a view has a tensor argument"
    shape, merged = shape_of(view), prod(parts.sizes)
    if [*shape[: parts.axis], merged, *shape[parts.last + 1 :]] == shape_of(source):
        return source
    name = op_name(view)
    first = positive(args["dim"], len(shape_of(source))) if name == "unflatten" else 0
    sizes = list(args[_VIEWS[name]])
    sizes[parts.axis - first : parts.last + 1 - first] = [merged]
    whole = graph.node_copy(view)
    view.prepend(whole)
    set_argument(whole, _VIEWS[name], sizes)
    _evaluate([whole])
    return whole


def _carry(graph: Graph, node: Node, axis: int, chain: dict[Node, Node]) -> Node:
    """The same move on one part, whose axis has one index."""
    copied = graph.node_copy(node, lambda n: chain.get(n, n))
    node.prepend(copied)
    name = op_name(node)
    if name in _VIEWS and name != "unflatten":
        sizes = list(arguments(node)[_VIEWS[name]])
        sizes[axis] = 1
        set_argument(copied, _VIEWS[name], sizes)
    return copied


def _deliver(graph: Graph, node: Node, axis: int, chains: list[dict[Node, Node]]) -> None:
    """Replace what a select or unbind took by the part's own tensor, without its axis of one."""
    source = node.args[0]
    assert isinstance(source, Node), "unbind and select have a tensor argument"
    takers = [node] if op_name(node) == "select" else list(node.users)
    for taker in takers:
        index = arguments(node)["index"] if taker is node else taker.args[1]
        part = chains[int(index) % len(chains)][source]  # type: ignore[arg-type]
        taker.replace_all_uses_with(_insert(graph, taker, aten.squeeze.dim, (part, axis)))


def _insert(graph: Graph, before: Node, target: Callable[..., object], args: tuple[Argument, ...]) -> Node:
    with graph.inserting_before(before):
        node = graph.call_function(target, args)
    node.meta = dict(before.meta)
    return node


def _evaluate(alike: list[Node]) -> None:
    """Fill in the `val` of nodes that do the same to each part, by running one of them on those of its arguments."""
    args, kwargs = torch.fx.node.map_arg((alike[0].args, alike[0].kwargs), lambda n: n.meta["val"])
    value = alike[0].target(*args, **kwargs)  # type: ignore[operator]
    for node in alike:
        node.meta["val"] = value
