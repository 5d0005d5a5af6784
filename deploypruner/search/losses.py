"""What every choice of a plan is predicted to cost, in numbers of one currency that can be added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.feasible_widths import Order, Room
from deploypruner.channels.normalize import comparable
from deploypruner.graph import Graph
from deploypruner.search.choices import Floats, WidthChoice


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

    A branch without channels of its own (all of them are the stream's) has the share of its multiply-adds.
    """
    groups = {g: line[-1] - np.append(0.0, line) for g, line in running.items()}
    whole = sum(float(line[0]) for line in groups.values())
    macs = max(graph.costs.macs(), 1)
    inside = {
        b.id: sum(float(groups[g][0]) for g in b.groups) if b.groups else whole * b.macs / macs
        for b in graph.branches
    }
    return Losses(groups, inside)


def make_choices(graph: Graph, room: Room, losses: Losses) -> list[WidthChoice]:
    """Widths and what they are worth, for every group that may be cut and every branch that may go.

    The widest group inside a branch carries the choice to leave the whole branch out. Tied groups are one choice.
    """
    owner = {g: b.id for b in graph.branches if not room.held.get(b.id, "held") for g in b.groups}
    free: dict[str, Sequence[int]] = {g.id: room.limits[g.id].narrower(g.size) for g in graph.groups}
    tied = {names[0]: names[1:] for names in room.tied}
    for first, others in tied.items():
        free[first] = [w for w in free[first] if all(w in free[name] for name in others)]
        free |= dict.fromkeys(others, ())
    carrier: dict[str, str] = {}
    for group in sorted(graph.groups, key=lambda g: -g.size):
        if group.id in owner and len(free[group.id]):
            carrier.setdefault(owner[group.id], group.id)
    found = []
    for group in graph.groups:
        if not len(free[group.id]):
            continue
        branch, widths = owner.get(group.id, ""), [*reversed(free[group.id]), group.size]
        others = tied.get(group.id, ())
        worth = -sum((losses.groups[name][widths] for name in others), losses.groups[group.id][widths])
        if carrier.get(branch) == group.id:
            widths, worth = [0, *widths], np.append(-losses.branches[branch], worth)
        found.append(WidthChoice(group.id, np.array(widths, np.int64), worth, branch, others))
    for branch, why in room.held.items():
        if not why and branch not in carrier:
            found.append(WidthChoice(branch, np.array([0, 1]), np.array([-losses.branches[branch], 0.0]), branch))
    return found


def kept_share(losses: Losses, widths: Mapping[str, int]) -> float:
    """Share of what all groups are worth that a plan keeps, 0 to 1.

    Args:
        losses: From `losses_from_scores`.
        widths: Of every group; branch id -> 0 for every branch that is gone, whose groups count as whole.
    """
    whole = sum(float(line[0]) for line in losses.groups.values())
    gone = sum(losses.branches[name] for name in losses.branches if not widths.get(name, 1))
    lost = gone + sum(float(line[widths[g]]) for g, line in losses.groups.items())
    return max(0.0, 1 - lost / whole) if whole > 0 else 1.0
