"""Pieces of one tensor that code cuts into equal parts: `a, b = x.chunk(2, 1)` wants as many channels in both.

So does attention whose q, k and v come out of one layer: `qkv.reshape(n, t, 3, heads, columns)`, which the traced
graph cuts into three. There a channel of a piece is a column of a head, and columns are what has to be equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from deploypruner.graph import Graph
from deploypruner.graph.nodes import SPLITS, arguments, is_tensor, op_name, positive, shape_of


def equal_pieces(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Ids of groups that are pieces of one cut into equal parts, one tuple a cut; cuts with a group in common joined.

    The traced graph can cut such a tensor unevenly. The code it was traced from cannot, so the user's own class needs
    equal counts. Pieces whose channels are no group of their own are left out.
    """
    found: list[set[str]] = []
    for node, values in graph.labelling.values.items():
        if op_name(node) not in SPLITS or not isinstance(values, list) or not is_tensor(node.args[0]):
            continue
        dim = positive(arguments(node)["dim"], len(shape_of(node.args[0])))
        named = _to_tie([_groups(graph, axes[dim]) for axes in values if isinstance(axes, list)])
        if len(named) > 1 and len({graph.group(name).size for name in named}) == 1:
            joined = [other for other in found if other & named]
            found = [*(other for other in found if not other & named), named.union(*joined)]
    order = {group.id: place for place, group in enumerate(graph.groups)}
    return tuple(tuple(sorted(names, key=order.__getitem__)) for names in found)


def equalised(ties: tuple[tuple[str, ...], ...], widths: Mapping[str, int]) -> dict[str, int]:
    """The same widths, those of tied groups at the smallest of them."""
    least = {name: min(widths[n] for n in names) for names in ties for name in names}
    return {**widths, **least}


def _to_tie(pieces: Sequence[frozenset[str]]) -> set[str]:
    """The group in which each piece differs from the others: they have as many channels when it has."""
    known = [piece for piece in pieces if piece]
    shared = frozenset.intersection(*known) if known else frozenset()
    left = [piece - shared for piece in known]
    return set().union(*left) if all(len(names) <= 1 for names in left) else set()


def _groups(graph: Graph, labels: object) -> frozenset[str]:
    """The one group that an axis consists of, or one for each factor of an axis such as heads x columns."""
    number = graph.axes.number(labels) if isinstance(labels, np.ndarray) else None
    if number is None:
        return frozenset()
    found = [_group(graph, set(factor.tolist())) for factor in graph.axes.rows[number].T]
    return frozenset() if None in found else frozenset(name for name in found if name is not None)


def _group(graph: Graph, atoms: set[int]) -> str | None:
    """The group of exactly these atoms."""
    return next((g.id for g in graph.groups if set(graph.atoms[g.id].tolist()) == atoms), None)
