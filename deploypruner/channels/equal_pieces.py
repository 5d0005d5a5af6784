"""Pieces of one tensor that code cuts into equal parts: `a, b = x.chunk(2, 1)` wants as many channels in both."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from deploypruner.graph import Graph
from deploypruner.graph.nodes import is_tensor, op_name, positive, shape_of

_CUTS = ("chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split")


def equal_pieces(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Ids of groups that are pieces of one cut into equal parts, one tuple a cut; cuts with a group in common joined.

    The traced graph can cut such a tensor unevenly. The code it was traced from cannot, so the user's own class needs
    equal counts. Pieces whose channels are no group of their own are left out.
    """
    found: list[set[str]] = []
    for node, values in graph.labelling.values.items():
        if op_name(node) not in _CUTS or not isinstance(values, list) or not is_tensor(node.args[0]):
            continue
        rank = len(shape_of(node.args[0]))
        dim = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        pieces = [_group(graph, axes[positive(int(dim), rank)]) for axes in values if isinstance(axes, list)]
        named = {piece for piece in pieces if piece is not None}
        if len(named) > 1 and len({graph.group(name).size for name in named}) == 1:
            joined = [other for other in found if other & named]
            found = [*(other for other in found if not other & named), named.union(*joined)]
    order = {group.id: place for place, group in enumerate(graph.groups)}
    return tuple(tuple(sorted(names, key=order.__getitem__)) for names in found)


def equalised(ties: tuple[tuple[str, ...], ...], widths: Mapping[str, int]) -> dict[str, int]:
    """The same widths, those of tied groups at the smallest of them."""
    least = {name: min(widths[n] for n in names) for names in ties for name in names}
    return {**widths, **least}


def _group(graph: Graph, labels: object) -> str | None:
    """The one group that an axis consists of, channel by channel."""
    number = graph.axes.number(labels) if isinstance(labels, np.ndarray) else None
    if number is None or graph.axes.rows[number].shape[1] != 1:
        return None
    atoms = set(graph.axes.rows[number][:, 0].tolist())
    return next((g.id for g in graph.groups if set(graph.atoms[g.id].tolist()) == atoms), None)
