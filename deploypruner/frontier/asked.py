"""The budgets of a frontier as they were asked for, each with the name of its folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deploypruner.errors import RecipeError
from deploypruner.recipe.budget import Budget, parse_latency


@dataclass(frozen=True)
class AskedPoint:
    """One budget.

    Args:
        name: In the table, and of its folder: "2x", "5ms", "5ms-p95".
        budget: What was asked for.
    """

    name: str
    budget: Budget

    @property
    def overrides(self) -> dict[str, dict[str, float | str]]:
        """What it changes in a recipe."""
        if self.budget.speedup is not None:
            return {"prune": {"speedup": self.budget.speedup}}
        assert self.budget.latency is not None, "a point is a speed-up or a time"
        return {"prune": {"latency": self.budget.latency}}


def asked_points(speedups: Iterable[float] = (), latencies: Iterable[float | str] = ()) -> tuple[AskedPoint, ...]:
    """The points in the order in which they are built, the mildest first.

    Args:
        speedups: At least 1 each.
        latencies: As --latency takes them.

    Raises:
        RecipeError: None, both kinds, one twice, or one out of range.
    """
    fast, times = tuple(speedups), tuple(latencies)
    if bool(fast) == bool(times):
        named = "both" if fast else "neither"
        raise RecipeError(
            f"a frontier is of --speedups or of --latencies, got {named}", hint="--speedups 1.25,1.5,2,3 is a start"
        )
    points = [AskedPoint(f"{factor:g}x", Budget(speedup=factor)) for factor in sorted(fast)]
    points += [_timed(latency) for latency in times]
    points.sort(key=lambda point: -(point.budget.latency_ms or 0.0))
    names = [point.name for point in points]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"point {twice} is asked for twice", hint="name every point once")
    return tuple(points)


def _timed(latency: float | str) -> AskedPoint:
    budget = Budget(latency=latency)
    ms, quantile = parse_latency(latency)
    at = "" if quantile == 0.5 else f"-p{100 * quantile:.0f}"
    return AskedPoint("fastest" if budget.fastest else f"{ms:g}ms{at}", budget)
