"""Plans that a search looked at or measured on its way, kept so that each can be exported later."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite

import numpy as np

from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.search.judge import Verdict
from deploypruner.search.solve import Solution


@dataclass(frozen=True)
class Look:
    """A verdict in numbers that JSON holds.

    Args:
        kind: What `loss` is.
        loss: None where it is not finite.
        metric: What `value` is counted in: the metric of the task, or top-1; "" where nothing is known.
        value: Of the plan.
        lost: Points against the dense model on the same samples.
        labelled: Is it the metric on labels, and not agreement?
        samples: Behind all of it.
        trained: Loss after a brief training, None where there was none.
    """

    kind: str
    loss: float | None
    metric: str
    value: float | None
    lost: float | None
    labelled: bool
    samples: int
    trained: float | None = None

    @staticmethod
    def of(verdict: Verdict, dense: Verdict) -> Look:
        """In the task's metric where it is known, else in top-1; `dense` is of the same samples."""
        loss, gap = _finite(verdict.loss), verdict.gap
        if gap is not None:
            value, lost = _finite(gap.found), _finite(gap.lost)
            return Look(verdict.kind, loss, gap.kind, value, lost, gap.labelled, verdict.samples)
        if verdict.top1 is None or dense.top1 is None:
            return Look(verdict.kind, loss, "", None, None, False, verdict.samples)
        lost = dense.top1 - verdict.top1
        return Look(verdict.kind, loss, "top-1", verdict.top1, lost, False, verdict.samples)


@dataclass(frozen=True)
class Candidate:
    """One plan.

    Args:
        by: What it was chosen by.
        keep: Group or branch id -> what stays, where that is not everything.
        predicted_ms: By the latency model as it was then.
        macs: Multiply-adds.
        params: Parameters.
        measured_ms: Median, None where it was only predicted.
        look: How it does repaired and not trained, None where nobody looked.
    """

    by: str
    keep: dict[str, tuple[int, ...]]
    predicted_ms: float
    macs: int
    params: int
    measured_ms: float | None = None
    look: Look | None = None

    @property
    def kept(self) -> Keep:
        """As every function takes it."""
        return {name: np.array(kept, np.int64) for name, kept in self.keep.items()}


@dataclass
class Candidates:
    """All of one search; a plan that comes again adds to what is known of it.

    Args:
        graph: The traced model.
        found: Plan -> what is known, in the order they came.
    """

    graph: Graph
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], Candidate] = field(default_factory=dict)

    def add(self, by: str, solution: Solution, *, measured_ms: float | None = None, look: Look | None = None) -> None:
        """Add a plan, or a measurement or a look to one that is there; a look at more samples replaces another."""
        keep = self._cut(solution)
        key = tuple(sorted(keep.items()))
        if key not in self.found:
            cost = self.graph.cost(solution.keep)
            self.found[key] = Candidate(by, keep, solution.predicted_ms, cost.macs, cost.params)
        known = self.found[key]
        if measured_ms is not None:
            known = replace(known, measured_ms=measured_ms)
        if look is not None and (known.look is None or look.samples >= known.look.samples):
            known = replace(known, look=look)
        self.found[key] = known

    def looked(self, solution: Solution) -> bool:
        """Did anybody look at this plan?"""
        known = self.found.get(tuple(sorted(self._cut(solution).items())))
        return known is not None and known.look is not None

    def all(self) -> tuple[Candidate, ...]:
        """In the order they came."""
        return tuple(self.found.values())

    def _cut(self, solution: Solution) -> dict[str, tuple[int, ...]]:
        sizes = {group.id: group.size for group in self.graph.groups}
        return {
            name: tuple(int(channel) for channel in kept)
            for name, kept in solution.keep.items()
            if len(kept) < sizes.get(name, 1)
        }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
