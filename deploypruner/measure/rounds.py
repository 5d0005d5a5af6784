"""Interleaved rounds: every artifact runs one block per round, in an order drawn anew each round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import RecipeError
from deploypruner.measure.statistics import half_width, paired_ratio

BLOCK_NS = 20_000_000
MIN_CALLS, MAX_CALLS = 5, 1000
NARROW = 0.02
_P95_SAMPLES = 100
_CHECK_EVERY = 5

Progress = Callable[[float, str], None]
"""Called after each round with the fraction of the budget that is gone and a line such as
"round 12, widest interval ±3.1 %"."""


class Timeable(Protocol):
    """Anything that can time a block of calls."""

    def block(self, calls: int) -> list[int]:
        """Return nanoseconds of `calls` inferences."""


@dataclass(frozen=True)
class Effort:
    """How long rounds go on.

    Args:
        min_rounds: Rounds that are always run.
        budget_s: Seconds after which no further round starts.

    Raises:
        RecipeError: `min_rounds` < 2 or `budget_s` <= 0.
    """

    min_rounds: int = 10
    budget_s: float = 12.0

    def __post_init__(self) -> None:
        if self.min_rounds < 2:
            raise RecipeError(f"min_rounds must be >= 2, got {self.min_rounds}", hint="an interval needs 10")
        if self.budget_s <= 0:
            raise RecipeError(f"budget_s must be > 0, got {self.budget_s:g}", hint="12 suits eight small models")


@dataclass(frozen=True)
class Rounds:
    """What rounds gave.

    Args:
        samples_ns: One `[rounds, per_round]` int64 array per job.
        settled: True where every interval is within ±2 % of its ratio.
    """

    samples_ns: tuple[NDArray[np.int64], ...]
    settled: bool


def block_calls(call_ns: Sequence[float], effort: Effort) -> list[int]:
    """Calls per block for each job: about 20 ms, 5 to 1000 calls.

    Where even that would not fit `min_rounds` rounds into the budget, blocks are shortened alike,
    down to one call.

    Args:
        call_ns: Nanoseconds of one call of each job, from its warm-up.
        effort: The rounds that are to fit.
    """
    calls = [min(MAX_CALLS, max(MIN_CALLS, math.ceil(BLOCK_NS / max(ns, 1.0)))) for ns in call_ns]
    # Each block makes one more call, which is thrown away.
    round_ns = sum((count + 1) * ns for count, ns in zip(calls, call_ns, strict=True))
    share = effort.budget_s * 1e9 / (effort.min_rounds * max(round_ns, 1.0))
    return calls if share >= 1 else [max(1, int(count * share)) for count in calls]


def run_rounds(
    workers: Sequence[Timeable],
    calls: Sequence[int],
    baselines: Sequence[int],
    *,
    effort: Effort,
    seed: int = 0,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Rounds:
    """Run rounds until every ratio is known to ±2 % and every p95 is carried, or the budget ends.

    Args:
        workers: One per job.
        calls: Calls per block of each job.
        baselines: For each job, the index of the job it is compared with.
        effort: Fewest rounds, and the time after which none starts.
        seed: Seed of the order within rounds.
        progress: Told after every round.
        clock: Seconds; a test may pass its own.

    Raises:
        MeasureError: A worker failed.
    """
    rng = np.random.default_rng(seed)
    taken: list[list[list[int]]] = [[] for _ in workers]
    begin, settled, widest, done = clock(), False, math.inf, 0
    while not settled and (done < effort.min_rounds or clock() - begin < effort.budget_s):
        for index in rng.permutation(len(workers)):
            taken[index].append(workers[index].block(calls[index]))
        done += 1
        if done >= effort.min_rounds and (done - effort.min_rounds) % _CHECK_EVERY == 0:
            widest = _widest(taken, baselines)
            settled = widest <= NARROW and done * min(calls) >= _P95_SAMPLES
        if progress is not None:
            known = "" if math.isinf(widest) else f", widest interval ±{widest:.1%}"
            progress(min(1.0, (clock() - begin) / effort.budget_s), f"round {done}{known}")
    widest = _widest(taken, baselines)
    return Rounds(tuple(np.array(rows, dtype=np.int64) for rows in taken), widest <= NARROW)


def _widest(taken: Sequence[Sequence[Sequence[int]]], baselines: Sequence[int]) -> float:
    """Largest relative half width over all jobs; 0 for a job that is its own baseline."""
    arrays = [np.array(rows, dtype=np.int64) for rows in taken]
    pairs = [(own, base) for own, base in enumerate(baselines) if own != base]
    widths = [half_width(*paired_ratio(arrays[own], arrays[base])) for own, base in pairs]
    return max(widths, default=0.0)
