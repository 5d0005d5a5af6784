"""Scopes: which cut is the next one. A scope puts all cuts that are allowed in one order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from deploypruner.criteria import Normalizer
from deploypruner.errors import RecipeError, nearest
from deploypruner.graph import Graph
from deploypruner.graph.module import get_state
from deploypruner.prune.constraints import Limit
from deploypruner.prune.normalize import comparable
from deploypruner.records import Group

SCOPES = {
    "uniform": "the same fraction of channels of every group",
    "global": "the least important channels of the whole network, wherever they are",
    "isomorphic": "the same fraction of every class of groups with alike layers, the least important of each",
    "recipe": "what the `cut` of each [[prune.layers]] table says; all else stays whole; no budget",
}


@dataclass(frozen=True)
class Move:
    """Cut `group` from width `before` down to `width`; `rank` orders moves, lowest first."""

    group: str
    before: int
    width: int
    rank: float


def check_scope(name: str) -> None:
    """Make sure there is a scope of this name.

    Raises:
        RecipeError: There is none; the nearest is offered.
    """
    if name not in SCOPES:
        raise RecipeError(f"no scope called '{name}'", hint=nearest(name, SCOPES))


def ordered_moves(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], *, scope: str, normalizer: Normalizer
) -> list[Move]:
    """Every cut that is allowed, in the order of the scope.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        limits: How far each group may be cut.
        scope: A name of `SCOPES`; "recipe" leaves nothing to order.
        normalizer: How to compare scores across groups.

    Source:
        "isomorphic" follows the idea of Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024,
        arXiv:2407.04616: only sub-structures of the same topology compete, and each set of them is pruned at one
        ratio. Ours: what counts as the same (`layout`), and that a budget decides the ratio.
    """
    if scope == "recipe":
        return []
    moves = []
    for group in graph.groups:
        widths = np.array([group.size, *limits[group.id].narrower(group.size)])
        if len(widths) == 1:
            continue
        if scope == "uniform":
            ranks = 1 - widths[1:] / group.size
        else:
            ascending = np.sort(comparable(scores[group.id].double(), group, normalizer).numpy())
            blocks = np.add.reduceat(ascending[: group.size - widths[-1]], group.size - widths[:-1])
            # A block is never less important than the one before it, except by rounding.
            ranks = np.maximum.accumulate(blocks / -np.diff(widths))
        steps = zip(widths[:-1].tolist(), widths[1:].tolist(), ranks.tolist(), strict=True)
        moves += [Move(group.id, before, width, rank) for before, width, rank in steps]
    if scope == "isomorphic":
        moves = _by_share_of_class(graph, moves)
    return sorted(moves, key=_key)


def layout(graph: Graph, group: Group) -> tuple[object, ...]:
    """What makes groups alike: as many channels, of one kind, in layers of the same windows at the same places.

    Not the number of channels on the other side of those layers: the first block of a stage is like the rest.
    """
    places = []
    for member in group.members:
        tensor = get_state(graph.module, member.parameter)
        role = graph.labelling.state[id(tensor)].roles.get(member.axis, "other")
        places.append((role, member.axis, tuple(tensor.shape[2:]), tensor.ndim, member.index.shape[1]))
    return (group.kind, group.size, tuple(sorted(places)))


def _by_share_of_class(graph: Graph, moves: list[Move]) -> list[Move]:
    """The same moves, ranked by the share of their class that is gone after them."""
    classes = {group.id: layout(graph, group) for group in graph.groups}
    mine: dict[tuple[object, ...], list[Move]] = defaultdict(list)
    for move in sorted(moves, key=_key):
        mine[classes[move.group]].append(move)
    found = []
    for name, members in mine.items():
        whole, gone = sum(g.size for g in graph.groups if classes[g.id] == name), 0
        for move in members:
            gone += move.before - move.width
            found.append(replace(move, rank=gone / whole))
    return found


def _key(move: Move) -> tuple[float, str, int]:
    return (move.rank, move.group, -move.width)
