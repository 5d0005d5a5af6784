"""Reasons to doubt a measurement, each with what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.measure.statistics import median_ms, quantile_ms
from deploypruner.records import Timing

_LONG_TAIL = 1.5
# The best split of one normal hump explains 2/π = 64 % of its variance, of a flat one 75 %.
_TWO_HUMPS = 0.85
_SMALLER_HUMP = 0.15
_GAP = 0.10
_TRIM = 0.95


def find_warnings(timings: Sequence[Timing], machine: Mapping[str, Any], *, settled: bool, floor: float) -> list[str]:
    """Return what casts doubt on `timings`; empty where nothing does.

    Args:
        timings: Of one run.
        machine: What `environment` returned before it.
        settled: False where the budget ended before every ratio was known to ±2 %.
        floor: Noise floor of the run.
    """
    threads = max((timing.threads for timing in timings), default=1)
    return [
        *_about_machine(machine["busy_cores"], machine["cores"], threads),
        *_about_run(settled=settled, floor=floor),
        *_about_samples(timings),
    ]


def is_bimodal(samples_ns: NDArray[np.int64]) -> bool:
    """True where samples form two humps at least 10 % apart, the smaller with at least 15 % of them.

    The slowest 5 % are left out. The best split into two groups must explain 85 % of the variance.
    """
    values = np.sort(samples_ns, axis=None)[: max(1, int(samples_ns.size * _TRIM))].astype(np.float64)
    count, spread = len(values), values.var()
    if count < 20 or spread == 0:
        return False
    below = np.arange(1, count)
    low_mean = np.cumsum(values)[:-1] / below
    high_mean = (values.sum() - np.cumsum(values)[:-1]) / (count - below)
    between = below * (count - below) / count**2 * (high_mean - low_mean) ** 2
    best = int(between.argmax())
    smaller = min(best + 1, count - best - 1) / count
    apart = high_mean[best] / low_mean[best] - 1
    return bool(between[best] / spread > _TWO_HUMPS and smaller >= _SMALLER_HUMP and apart >= _GAP)


def _about_machine(busy: float, cores: int, threads: int) -> list[str]:
    texts = []
    if threads > cores:
        texts.append(f"{threads} threads share {cores} cores, so they wait for each other; try --threads {cores}")
    elif busy + threads > cores + 0.5:
        texts.append(
            f"the machine was busy before measuring began: {busy:.1f} of {cores} cores in use, {threads} more "
            "needed; stop other programs and measure again"
        )
    return texts


def _about_run(*, settled: bool, floor: float) -> list[str]:
    if settled:
        return []
    return [
        f"the time budget ended before every ratio was known to ±2 % (noise floor {floor:.1%}); "
        "give more time, or measure on a quieter machine"
    ]


def _about_samples(timings: Sequence[Timing]) -> list[str]:
    tails, humps = [], []
    for timing in timings:
        name = f"'{timing.artifact.name}' on {timing.runtime}"
        p95, median = quantile_ms(timing.samples_ns, 0.95), median_ms(timing.samples_ns)
        if p95 is not None and p95 > _LONG_TAIL * median:
            tails.append(f"{p95 / median:.1f}x for {name}")
        if is_bimodal(timing.samples_ns):
            humps.append(name)
    texts = []
    if tails:
        texts.append(
            f"p95 is far above the median ({', '.join(tails)}), so something else ran at times; "
            "stop other programs and measure again"
        )
    if humps:
        texts.append(
            f"two speeds in the samples of {', '.join(humps)}, as when the processor changes frequency or a "
            "neighbour comes and goes; fix the frequency (governor 'performance') or measure again"
        )
    return texts
