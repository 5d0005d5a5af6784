"""What every choice of a plan is predicted to cost, in numbers of one currency that can be added up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deploypruner.criteria import Normalizer
from deploypruner.graph import Graph
from deploypruner.prune.normalize import comparable
from deploypruner.prune.room import Order, Room
from deploypruner.search.choices import Choice, Floats


@dataclass(frozen=True)
class Losses:
    """Predicted loss of each choice alone; the solver keeps their sum as small as it can.

    Args:
        groups: Group id -> `[C + 1]`, with the first 0, 1, ... C channels of the order; the last is 0.
        branches: Branch id -> without the branch.
    """

    groups: Mapping[str, Floats]
    branches: Mapping[str, float]


def running_importance(
    graph: Graph, scores: Mapping[str, Tensor], order: Order, *, normalizer: Normalizer
) -> dict[str, Floats]:
    """Group id -> `[C]`, importance kept by the first 1, 2, ... channels of the order; negative scores count as 0.

    "per_mac" does not divide here: it makes a threshold on scores that estimate a change of the loss pay for
    multiply-adds, while the search pays for milliseconds and wants the estimate itself.
    """
    how: Normalizer = "none" if normalizer == "per_mac" else normalizer
    running = {}
    for group in graph.groups:
        score = comparable(scores[group.id].double(), group, how).clamp_min(0).numpy()
        running[group.id] = np.cumsum(score[order[group.id]])
    return running


def losses_from_scores(graph: Graph, running: Mapping[str, Floats]) -> Losses:
    """The importance that goes with channels; with a branch, that of all channels inside it.

    A branch without any channel of its own (all its channels are the stream's) costs as much as the dearest one.
    """
    groups = {g: line[-1] - np.append(0.0, line) for g, line in running.items()}
    inside = {b.id: sum(float(groups[g][0]) for g in b.groups) for b in graph.branches if b.groups}
    dearest = max(inside.values(), default=sum(float(line[0]) for line in groups.values()))
    return Losses(groups, {b.id: inside.get(b.id, dearest) for b in graph.branches})


def make_choices(graph: Graph, room: Room, losses: Losses) -> list[Choice]:
    """Widths and what they are worth, for every group that may be cut and every branch that may go.

    The widest group inside a branch carries the choice to leave the whole branch out.
    """
    owner = {g: b.id for b in graph.branches if not room.held.get(b.id, "held") for g in b.groups}
    free = {g.id: room.limits[g.id].narrower(g.size) for g in graph.groups}
    carrier: dict[str, str] = {}
    for group in sorted(graph.groups, key=lambda g: -g.size):
        if group.id in owner and len(free[group.id]):
            carrier.setdefault(owner[group.id], group.id)
    found = []
    for group in graph.groups:
        if not len(free[group.id]):
            continue
        branch, widths = owner.get(group.id, ""), [*reversed(free[group.id]), group.size]
        worth = -losses.groups[group.id][widths]
        if carrier.get(branch) == group.id:
            widths, worth = [0, *widths], np.append(-losses.branches[branch], worth)
        found.append(Choice(group.id, np.array(widths, np.int64), worth, branch))
    for branch, why in room.held.items():
        if not why and branch not in carrier:
            found.append(Choice(branch, np.array([0, 1]), np.array([-losses.branches[branch], 0.0]), branch))
    return found


def kept_share(running: Mapping[str, Floats], widths: Mapping[str, int], gone: frozenset[str] = frozenset()) -> float:
    """Share of the importance of all groups that these widths keep, 0 to 1; those of `gone` keep none."""
    whole = sum(float(line[-1]) for line in running.values())
    kept = sum(float(line[widths[g] - 1]) for g, line in running.items() if g not in gone)
    return kept / whole if whole > 0 else 1.0
