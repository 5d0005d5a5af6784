"""Interleaved rounds: every artifact runs one block per round, in an order drawn anew each round."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import DeviceLostError, MeasureError, RecipeError
from deploypruner.measure.statistics import half_width, paired_ratio, samples_for

BLOCK_NS = 20_000_000
MIN_CALLS, MAX_CALLS = 3, 1000
NARROW = 0.02
_CHECK_EVERY = 5
# Of the machine, one after another, without a whole round between.
_MOST_LOSSES = 3

Progress = Callable[[float, str], None]
"""Called after each round with the fraction of the budget that is gone and a line such as
"round 12, widest interval ±3.1 %"."""


class Timeable(Protocol):
    """Anything that can time a block of calls."""

    def block(self, calls: int) -> list[int]:
        """Return nanoseconds of `calls` inferences."""


@dataclass(frozen=True)
class MeasuringEffort:
    """How long rounds go on.

    Args:
        min_rounds: Rounds that are always run.
        budget_s: Seconds after which no further round starts.
        narrow: Half width of every interval, relative to its ratio, that ends the rounds.
        quantile: Largest quantile that the samples are to carry before the rounds end.

    Raises:
        RecipeError: `min_rounds` < 2, `budget_s` or `narrow` <= 0, or `quantile` outside of [0.5, 1).
    """

    min_rounds: int = 10
    budget_s: float = 12.0
    narrow: float = NARROW
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if self.min_rounds < 2:
            raise RecipeError(f"min_rounds must be >= 2, got {self.min_rounds}", hint="an interval needs 10")
        if self.budget_s <= 0:
            raise RecipeError(f"budget_s must be > 0, got {self.budget_s:g}", hint="12 suits eight small models")
        if not self.narrow > 0:
            raise RecipeError(f"the interval must be > 0, got {self.narrow:g}", hint="0.02 is ±2 %")
        if not 0.5 <= self.quantile < 1:
            raise RecipeError(f"quantile must be in [0.5, 1), got {self.quantile:g}", hint="0.95 is p95")


@dataclass(frozen=True)
class Rounds:
    """What rounds gave.

    Args:
        samples_ns: One `[rounds, per_round]` int64 array per job; of a job that failed, nothing is kept.
        settled: True where every interval is as narrow as was asked.
        failed: Index of each job whose worker failed on the way -> what happened.
    """

    samples_ns: tuple[NDArray[np.int64], ...]
    settled: bool
    failed: dict[int, MeasureError] = field(default_factory=dict)


def block_calls(call_ns: Sequence[float], effort: MeasuringEffort) -> list[int]:
    """Calls per block for each job: about 20 ms, 3 to 1000 calls.

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
    effort: MeasuringEffort,
    seed: int = 0,
    progress: Progress | None = None,
    announce: Callable[[Sequence[int]], None] | None = None,
    each_round: Callable[[], None] | None = None,
    regain: Callable[[DeviceLostError], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Rounds:
    """Run rounds until every ratio is known and every p95 is carried, or the budget ends.

    A worker that fails is left out from then on; those it was the baseline of get the first of them instead.

    Args:
        workers: One per job.
        calls: Calls per block of each job.
        baselines: For each job, the index of the job it is compared with.
        effort: Fewest rounds, the time after which none starts, and how well the ratios are to be known.
        seed: Seed of the order within rounds.
        progress: Told after every round.
        announce: Told the order before every round, so that a whole one can be asked for at once.
        each_round: Called after every round.
        regain: Called where the machine is lost in a round, which is run anew then; gets it back or raises.
        clock: Seconds; a test may pass its own.
    """
    rng = np.random.default_rng(seed)
    taken: dict[int, list[list[int]]] = {index: [] for index in range(len(workers))}
    against, failed = list(baselines), dict[int, MeasureError]()
    needed = samples_for(effort.quantile)
    begin, settled, widest, done, losses = clock(), False, math.inf, 0, 0
    while taken and not settled and (done < effort.min_rounds or clock() - begin < effort.budget_s):
        order = [index for index in map(int, rng.permutation(len(workers))) if index not in failed]
        try:
            found = _one_round(workers, calls, order, announce)
            if each_round is not None:
                each_round()
        except DeviceLostError as error:
            losses, lost_at = losses + 1, clock()
            if regain is None or losses > _MOST_LOSSES:
                raise
            regain(error)
            begin += clock() - lost_at
            continue
        losses = 0
        for index, given in found.items():
            if isinstance(given, MeasureError):
                failed[index] = given
                del taken[index]
                _replace_baseline(against, index, list(taken))
            else:
                taken[index].append(given)
        done += 1
        if done >= effort.min_rounds and (done - effort.min_rounds) % _CHECK_EVERY == 0:
            widest = _widest(taken, against)
            settled = widest <= effort.narrow and done * min(calls[index] for index in taken or [0]) >= needed
        if progress is not None:
            known = "" if math.isinf(widest) else f", widest interval ±{100 * widest:.1f} %"
            progress(min(1.0, (clock() - begin) / effort.budget_s), f"round {done}{known}")
    samples = tuple(np.array(taken.get(index, []), dtype=np.int64) for index in range(len(workers)))
    return Rounds(samples, _widest(taken, against) <= effort.narrow, failed)


def _one_round(
    workers: Sequence[Timeable],
    calls: Sequence[int],
    order: Sequence[int],
    announce: Callable[[Sequence[int]], None] | None,
) -> dict[int, list[int] | MeasureError]:
    """What every worker gives, or how it failed."""
    found: dict[int, list[int] | MeasureError] = {}
    if announce is not None:
        announce(order)
    for index in order:
        try:
            found[index] = workers[index].block(calls[index])
        except MeasureError as error:
            found[index] = error
    return found


def _replace_baseline(against: list[int], gone: int, alive: Sequence[int]) -> None:
    """In place: compare those whose baseline is gone with the first of them."""
    orphans = [index for index in alive if against[index] == gone]
    for index in orphans:
        against[index] = orphans[0]


def _widest(taken: Mapping[int, Sequence[Sequence[int]]], baselines: Sequence[int]) -> float:
    """Largest relative half width over all jobs; 0 for a job that is its own baseline."""
    arrays = {index: np.array(rows, dtype=np.int64) for index, rows in taken.items()}
    pairs = [(own, baselines[own]) for own in taken if own != baselines[own]]
    widths = [half_width(*paired_ratio(arrays[own], arrays[base])) for own, base in pairs]
    return max(widths, default=0.0)
