"""What was measured of single cuts, and what it makes of every width: numbers of one currency.

The criterion says which channels go first, and the shape of the loss between the measured width and the others; the
measurement says how large it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from deploypruner.channels.feasible_widths import Order
from deploypruner.graph import Graph
from deploypruner.search.choices import Floats
from deploypruner.search.losses import Losses

# What a measured width costs at the least, in nats: 256 samples do not tell less from nothing.
_LEAST = 1e-4
# Share of a square law in every curve, for criteria that call all channels behind the measured width worthless.
_SQUARE = 1e-3


@dataclass(frozen=True)
class GroupWorth:
    """What the channels behind one width are worth.

    Args:
        width: Channels that were left.
        change: Of the loss without the others, mean over the samples.
        error: Standard error of that mean.
    """

    width: int
    change: float
    error: float


@dataclass(frozen=True)
class BranchWorth:
    """What a residual branch is worth.

    Args:
        change: Of the loss without it, mean over the samples.
        error: Standard error of that mean.
    """

    change: float
    error: float


@dataclass(frozen=True)
class MeasuredWorth:
    """Every cut alone, measured on data with batch-norm statistics as they were.

    Args:
        kind: What changed, in words: see `ModelLoss.measured`.
        samples: It was measured on.
        groups: Group id -> at one width.
        branches: Branch id -> without it.
        seconds: It took, pauses left out.
    """

    kind: str
    samples: int
    groups: Mapping[str, GroupWorth]
    branches: Mapping[str, BranchWorth]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> MeasuredWorth:
        """The opposite of `to_json`."""
        groups = {name: GroupWorth(**worth) for name, worth in document["groups"].items()}
        branches = {name: BranchWorth(**worth) for name, worth in document["branches"].items()}
        return MeasuredWorth(document["kind"], document["samples"], groups, branches, document["seconds"])


def losses_from_worth(graph: Graph, worth: MeasuredWorth, scores: Mapping[str, Tensor], order: Order) -> Losses:
    """What every width of every group, and the lack of every branch, is predicted to cost.

    L(w) = max(l, 1e-4) T(w) / T(h), l measured at width h. T is the criterion's sum over the C - w channels that go
    (scores below zero count as 0) plus a thousandth of a square law, (1 - w / C)^2 T(0), so that no ratio is endless
    where the criterion calls the second half of the order worthless. A branch: max(change, 0). A group that was not
    measured has the median exchange rate of the others, and such a branch costs what its groups do.

    Args:
        graph: The traced model.
        worth: What was measured.
        scores: Group id -> `[C]`, larger means keep.
        order: Group id -> channels, those that stay longest first; the one it was measured with.

    Source:
        The square law is SPDY's prior, arXiv:2201.13096, sec. 3.3; the scaling to the measurement is ours.
    """
    shapes = {g.id: _shape(scores[g.id], order[g.id]) for g in graph.groups}
    rates = {name: max(at.change, _LEAST) / shapes[name][at.width] for name, at in worth.groups.items()}
    usual = float(np.median(list(rates.values()))) if rates else 1.0
    groups = {name: rates.get(name, usual) * shape for name, shape in shapes.items()}
    branches = {b.id: sum(float(groups[g][0]) for g in b.groups) for b in graph.branches}
    measured = {name: max(branch.change, 0.0) for name, branch in worth.branches.items()}
    return Losses(groups, {**branches, **measured})


def _shape(scores: Tensor, order: np.ndarray) -> Floats:
    score = scores.double().clamp_min(0).numpy()[order]
    gone = np.concatenate([np.cumsum(score[::-1])[::-1], [0.0]])
    square = (1 - np.arange(len(gone)) / len(score)) ** 2
    shape: Floats = gone + _SQUARE * (gone[0] or 1.0) * square
    return shape
