"""What a width is worth to a plan, in numbers that can be added over groups."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from deploypruner.criteria import Normalizer
from deploypruner.graph import Graph
from deploypruner.prune.normalize import comparable
from deploypruner.prune.room import Order, Room
from deploypruner.search.choices import Choice, Floats


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


def make_choices(graph: Graph, room: Room, running: Mapping[str, Floats]) -> list[Choice]:
    """Widths and their worth, for every group that may be cut."""
    found = []
    for group in graph.groups:
        narrower = room.limits[group.id].narrower(group.size)
        if len(narrower):
            widths = np.array([*reversed(narrower), group.size], dtype=np.int64)
            found.append(Choice(group.id, widths, running[group.id][widths - 1]))
    return found


def kept_share(running: Mapping[str, Floats], widths: Mapping[str, int]) -> float:
    """Share of the importance of all groups that these widths keep, 0 to 1."""
    whole = sum(float(line[-1]) for line in running.values())
    kept = sum(float(line[widths[g] - 1]) for g, line in running.items())
    return kept / whole if whole > 0 else 1.0
