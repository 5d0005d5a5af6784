"""Scopes: which cut is the next one. A scope puts all cuts that are allowed in one order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from deploypruner.channels.constraints import Limit
from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.normalize import comparable
from deploypruner.graph import Graph
from deploypruner.graph.execute.module import get_state
from deploypruner.records import Group
from deploypruner.registries import scopes


@dataclass(frozen=True)
class Move:
    """Cut `group` from width `before` down to `width`; `rank` orders moves, lowest first."""

    group: str
    before: int
    width: int
    rank: float


# Graph, scores, limits, normalizer -> every cut that is allowed, with its rank.
Scope = Callable[[Graph, Mapping[str, Tensor], Mapping[str, Limit], Normalizer], list[Move]]
# Group, its widths from the whole down [W] -> ranks of the cuts from each to the next [W - 1].
Ranks = Callable[[Group, NDArray[np.int64]], NDArray[np.float64]]


def ordered_moves(
    graph: Graph,
    scores: Mapping[str, Tensor],
    limits: Mapping[str, Limit],
    *,
    scope: str,
    normalizer: Normalizer,
    tied: Sequence[Sequence[str]] = (),
) -> list[Move]:
    """Every cut that is allowed, in the order of the scope.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        limits: How far each group may be cut.
        scope: A registered name; "recipe" leaves nothing to order.
        normalizer: How to compare scores across groups.
        tied: Ids of groups that are to have equal widths: a cut of one ranks as the mean of theirs.

    Raises:
        RecipeError: No such scope; the nearest is offered.
    """
    moves = scopes.get(scope)(graph, scores, limits, normalizer)
    return sorted(_together(moves, tied), key=_key)


def _together(moves: Sequence[Move], tied: Sequence[Sequence[str]]) -> list[Move]:
    partners = {name: number for number, names in enumerate(tied) for name in names}
    ranks = defaultdict[tuple[int, int], list[float]](list)
    for move in moves:
        if move.group in partners:
            ranks[partners[move.group], move.width].append(move.rank)
    return [
        replace(move, rank=fmean(ranks[partners[move.group], move.width])) if move.group in partners else move
        for move in moves
    ]


@scopes.register("uniform", about="the same fraction of channels of every group")
def uniform(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], normalizer: Normalizer
) -> list[Move]:
    """Every cut, ranked by the share of its group that is gone after it."""
    return _moves(graph, limits, lambda group, widths: 1 - widths[1:] / group.size)


@scopes.register("global", about="the least important channels of the whole network, wherever they are")
def anywhere(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], normalizer: Normalizer
) -> list[Move]:
    """Every cut, ranked by the mean comparable score of the channels that go."""

    def ranks(group: Group, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        ascending = np.sort(comparable(scores[group.id].double(), group, normalizer).numpy())
        blocks = np.add.reduceat(ascending[: group.size - widths[-1]], group.size - widths[:-1])
        # A block is never less important than the one before it, except by rounding.
        found: NDArray[np.float64] = np.maximum.accumulate(blocks / -np.diff(widths))
        return found

    return _moves(graph, limits, ranks)


@scopes.register(
    "isomorphic", about="the same fraction of every class of groups with alike layers, the least important of each"
)
def isomorphic(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], normalizer: Normalizer
) -> list[Move]:
    """Every cut, ranked by the share of its class that is gone after it; within a class as `anywhere` ranks.

    Source:
        The idea of Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, arXiv:2407.04616: only
        sub-structures of the same topology compete, and each set of them is pruned at one ratio. Ours: what counts
        as the same (`layout`), and that a budget decides the ratio.
    """
    return _by_share_of_class(graph, anywhere(graph, scores, limits, normalizer))


@scopes.register(
    "recipe", about="what the `cut` of each [[prune.layers]] table says; all else stays whole; no budget"
)
def recipe(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], normalizer: Normalizer
) -> list[Move]:
    """Nothing is left to order."""
    return []


def _moves(graph: Graph, limits: Mapping[str, Limit], ranks: Ranks) -> list[Move]:
    moves = []
    for group in graph.groups:
        widths = np.array([group.size, *limits[group.id].narrower(group.size)])
        if len(widths) == 1:
            continue
        steps = zip(widths[:-1].tolist(), widths[1:].tolist(), ranks(group, widths).tolist(), strict=True)
        moves += [Move(group.id, before, width, rank) for before, width, rank in steps]
    return moves


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
