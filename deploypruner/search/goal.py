"""A budget of time, judged by measurement: met only where the whole interval lies within it."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.measure import median_ms, paired_ratio, quantile_ms, upper_bound_ms
from deploypruner.recipe.budget import Budget
from deploypruner.records import Timing


@dataclass(frozen=True)
class Assessment:
    """What one measurement says about a candidate.

    Args:
        median_ms: Of single inferences.
        model_ms: What the latency model should have predicted: the median, for a speed-up as it would have been when
            the goal's dense model was timed. The speed of a machine wanders, a ratio measured side by side does not.
        measured: In the unit of the budget: milliseconds of its quantile, or the speed-up.
        bound: The end of the 95 % interval that has to keep the budget: the upper one of a latency, the lower one
            of a speed-up.
        strain: How much slower `bound` is than allowed, as a factor; at most 1 where the budget is met.
        excess: The same for `measured`, without regard to the uncertainty.
    """

    median_ms: float
    model_ms: float
    measured: float
    bound: float
    strain: float
    excess: float

    @property
    def met(self) -> bool:
        """Is the budget kept beyond reasonable doubt?"""
        return self.strain <= 1


@dataclass(frozen=True)
class Goal:
    """A latency or a speed-up to reach.

    Args:
        budget: Of kind "latency" or "speedup".
        dense_ms: Median of the dense model in the same runtime, precision and threads.
        tail: Quantile of single inferences the budget is about / their median, as observed on the dense model.
    """

    budget: Budget
    dense_ms: float
    tail: float = 1.0

    @staticmethod
    def of(budget: Budget, dense: Timing) -> Goal:
        """The goal of `budget`, given the dense model's timing."""
        samples = dense.samples_ns
        middle = median_ms(samples)
        return Goal(budget, middle, _quantile(dense, budget.quantile) / middle)

    @property
    def requested(self) -> float:
        """Milliseconds or times, as the user said it."""
        value = self.budget.latency_ms if self.budget.speedup is None else self.budget.speedup
        assert value is not None, "a budget of multiply-adds has no goal in time"
        return value

    @property
    def median_ms(self) -> float:
        """The median a candidate may have, for the solver."""
        if self.budget.speedup is not None:
            return self.dense_ms / self.budget.speedup
        return self.requested / self.tail

    def assess(self, timing: Timing, dense: Timing, *, seed: int = 0) -> Assessment:
        """Judge a candidate by its timing; `dense` was timed in the same rounds.

        Raises:
            MeasureError: The timings are not of one run.
        """
        middle = median_ms(timing.samples_ns)
        if self.budget.speedup is not None:
            ratio, (low, _) = paired_ratio(timing.samples_ns, dense.samples_ns, seed=seed)
            return Assessment(middle, self.dense_ms / ratio, ratio, low, self.requested / low, self.requested / ratio)
        measured = _quantile(timing, self.budget.quantile)
        bound = upper_bound_ms(timing.samples_ns, self.budget.quantile)
        bound = _slowest(timing) if bound is None else bound
        return Assessment(middle, middle, measured, bound, bound / self.requested, measured / self.requested)


def _quantile(timing: Timing, quantile: float) -> float:
    """Milliseconds; the slowest sample stands for a quantile that the samples cannot carry."""
    found = quantile_ms(timing.samples_ns, quantile)
    return _slowest(timing) if found is None else found


def _slowest(timing: Timing) -> float:
    return float(timing.samples_ns.max()) / 1e6
