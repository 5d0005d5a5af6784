"""Reasons to doubt a measurement, each with what to try."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.measure.interference import Conditions
from deploypruner.measure.protocol import Measured
from deploypruner.measure.rounds import NARROW
from deploypruner.measure.statistics import median_ms, quantile_ms
from deploypruner.records import Timing

_LONG_TAIL = 1.5
# The best split of one normal hump explains 2/π = 64 % of its variance, of a flat one 75 %.
_TWO_HUMPS = 0.85
_SMALLER_HUMP = 0.15
_GAP = 0.10
_TRIM = 0.95
_SOMETIMES = 0.10
_NOISY_FLOOR = 0.05


def find_warnings(
    timings: Sequence[Timing],
    machine: Mapping[str, Any],
    *,
    settled: bool,
    floor: float,
    narrow: float = NARROW,
    conditions: Conditions | None = None,
    longer: str = "",
) -> list[str]:
    """Return what casts doubt on `timings`, each with its cause and what to try; empty where nothing does.

    Args:
        timings: Of one run.
        machine: What `environment` returned before it.
        settled: False where the budget ended before every ratio was known to ± `narrow`.
        floor: Noise floor of the run.
        narrow: How well the ratios were to be known, relative.
        conditions: What else the machine did during the run; None where nobody looked.
        longer: Command that measures longer; "" where only the option can be named.
    """
    more = f"give more time: {longer}" if longer else "give more time with --seconds"
    threads = max((timing.threads for timing in timings), default=1)
    return [
        *_about_machine(machine["busy_cores"], machine["cores"], threads),
        *(_about_conditions(conditions, more) if conditions is not None else ()),
        *_about_run(settled=settled, floor=floor, narrow=narrow, more=more),
        *_about_samples(timings),
        *about_inputs(timings),
    ]


def find_doubts(
    measured: Measured, machine: Mapping[str, Any], *, narrow: float = NARROW, longer: str = ""
) -> list[str]:
    """`find_warnings` about a whole run of the protocol."""
    return find_warnings(
        measured.timings,
        machine,
        settled=measured.settled,
        floor=measured.floor,
        narrow=narrow,
        conditions=measured.conditions,
        longer=longer,
    )


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


def _about_conditions(conditions: Conditions, more: str) -> list[str]:
    texts = []
    if busy := conditions.busy_throughout():
        texts.append(
            f"{busy}; a budget is certified only with a margin larger than that; stop other programs and "
            "measure again"
        )
    elif conditions.disturbed > _SOMETIMES:
        texts.append(
            f"the machine was busy for {100 * conditions.disturbed:.0f} % of the time while measuring: "
            f"{conditions.reasons()}; stop other programs, or {more}"
        )
    if conditions.mhz_moved is not None:
        low, high = conditions.mhz_moved
        texts.append(
            f"the processor's frequency moved between {low:.0f} and {high:.0f} MHz while measuring; rely on ratios, "
            f"not on milliseconds; fix it (governor 'performance', turbo off) or {more}"
        )
    if conditions.slowed:
        texts.append(
            f"the processor's frequency fell by more than 5 % within {conditions.slowed} of {conditions.rounds} "
            f"rounds; cool it, fix the frequency (governor 'performance') or {more}"
        )
    if conditions.throttled:
        hot = "" if conditions.celsius is None else f" (up to {conditions.celsius:.0f} degrees Celsius)"
        texts.append(
            f"the processor slowed itself down {conditions.throttled} times because it was hot{hot}; cool it, or "
            "rely on ratios, not on milliseconds"
        )
    if conditions.losses:
        texts.append(
            f"the connection was lost while measuring, {conditions.losses} time"
            f"{'' if conditions.losses == 1 else 's'}: each time that round was left out, and new processes were "
            "warmed up before the next one"
        )
    if conditions.swapped:
        texts.append(
            f"{conditions.swapped} pages were swapped while measuring; stop other programs, or use a smaller model"
        )
    return texts


def _about_run(*, settled: bool, floor: float, narrow: float, more: str) -> list[str]:
    texts = []
    if not settled:
        texts.append(
            f"the time budget ended before every ratio was known to ±{narrow * 100:g} % "
            f"(noise floor {100 * floor:.1f} %); measure on a quieter machine, or {more}"
        )
    if floor > _NOISY_FLOOR:
        texts.append(
            f"two workers of the same file differ by up to {100 * floor:.1f} %, so smaller differences are not "
            f"called; stop other programs, try --threads 1, or {more}"
        )
    return texts


def about_inputs(timings: Sequence[Timing]) -> list[str]:
    """Milliseconds per call of models that are called differently do not compare."""
    fed: dict[str, list[str]] = {}
    for timing in timings:
        shapes = sorted(text for name, text in timing.settings.items() if name.startswith("fed "))
        if shapes:
            fed.setdefault(", ".join(shapes), []).append(f"'{timing.artifact.name}'")
    if len(fed) < 2:
        return []
    said = "; ".join(f"{', '.join(dict.fromkeys(names))}: {shapes}" for shapes, names in fed.items())
    return [f"the artifacts were called with inputs of different sizes ({said}), so their times do not compare"]


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
