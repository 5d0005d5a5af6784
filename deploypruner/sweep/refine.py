"""Refined search: what the population taught as a narrower space, looked at cheaply before the best few are trained.

Source: the idea of narrowing the space to recipes near the optimal computation budget is He et al.'s,
arXiv:2304.09453. Ranking by the quality after batch norm was estimated anew is EagleEye's, arXiv:2007.02491; that
layers are reconstructed first, the width of the window and the choice of the sub-space of `std` are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from deploypruner.graph import Keep
from deploypruner.sweep.records import Bucket, DenseModel, Optimum
from deploypruner.sweep.space import PruningSpace

WINDOW = 0.05
"""Least distance from the optimal budget that is allowed, as a share of the dense model's MACs per parameter."""

_FEWEST_IN_BUCKET = 4


@dataclass(frozen=True)
class RefinedSpace:
    """A narrower space.

    Args:
        space: The space.
        text: In words, for the user.
    """

    space: PruningSpace
    text: str


def refined(
    space: PruningSpace, *, dense: DenseModel, optimum: Optimum | None, buckets: tuple[Bucket, ...]
) -> tuple[RefinedSpace, ...]:
    """The part of a space in which its population did best, and wider ones for where that holds too few recipes.

    Args:
        space: That the population was sampled from.
        dense: What budgets are relative to.
        optimum: Of the population; None leaves the budget free.
        buckets: Of the population.
    """
    found = [RefinedSpace(space, "the whole space")]
    if optimum is not None:
        least, most = _window(optimum)
        graph = space.graph

        def accepts(keep: Keep) -> bool:
            removed = graph.removed(keep)
            budget = graph.costs.macs(removed) / graph.costs.params(removed) / dense.macs_per_param
            return least <= budget <= most

        text = f"{least:.3f} to {most:.3f} times the dense model's MACs per parameter"
        found.append(RefinedSpace(replace(space, accepts=accepts), text))
    enough = [bucket for bucket in buckets if len(bucket.drops) >= _FEWEST_IN_BUCKET]
    if len(enough) > 1:
        best = min(enough, key=lambda bucket: float(np.median(bucket.drops)))
        low, high = max(space.std[0], best.low), min(space.std[1], best.high)
        text = f"a standard deviation of the ratios from {low:g} to {high:g}"
        if optimum is not None:
            text += f" and {found[-1].text}"
        found.append(RefinedSpace(replace(found[-1].space, std=(low, high)), text))
    return tuple(reversed(found))


def _window(optimum: Optimum) -> tuple[float, float]:
    """The interval of the optimum, widened to the least window, within what was observed."""
    low, high = optimum.interval
    low, high = min(low, optimum.at - WINDOW), max(high, optimum.at + WINDOW)
    return max(low, optimum.observed[0]), min(high, optimum.observed[1])
