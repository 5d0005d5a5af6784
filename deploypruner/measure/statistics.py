"""Numbers drawn from raw samples. Nothing is called faster that is not.

Latency is skewed and drifts with the machine, so nothing here uses a mean, and ratios are paired: round r
of two artifacts was taken side by side, so their ratio in that round is free of slow drift. The speed-up
is the median of those per-round ratios, with a bootstrap interval over rounds.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import MeasureError
from deploypruner.records import Comparison, SampleHistogram, Timing, Verdict

SMALLEST_FLOOR = 0.01
_CONFIDENCE = 0.95
_RESAMPLES = 4000
_BINS = 20
_SAMPLES_BEYOND = 5
_FEWEST_ROUNDS = 5
_MOST_INDEPENDENT = 5000

Samples = NDArray[Any]


def median_ms(samples_ns: Samples) -> float:
    """Median of all samples, in milliseconds."""
    return float(np.median(samples_ns)) / 1e6


def quantile_ms(samples_ns: Samples, q: float) -> float | None:
    """Quantile `q` of all samples in milliseconds, or None where the samples cannot carry it.

    At least five samples must lie beyond a quantile: p95 needs 100 samples, p99 needs 500.
    """
    if samples_ns.size < samples_for(q):
        return None
    return float(np.quantile(samples_ns, q)) / 1e6


def histogram(samples_ns: Samples) -> SampleHistogram:
    """Twenty bins from the quickest sample to twice the median, or the slowest where that is less."""
    ms = np.ravel(samples_ns) / 1e6
    low, high = float(ms.min()), float(min(ms.max(), 2 * np.median(ms)))
    high = high if high > low else low * (1 + 1e-6) + 1e-9
    counts, _ = np.histogram(np.minimum(ms, high), bins=_BINS, range=(low, high))
    return SampleHistogram(low, high, tuple(int(count) for count in counts))


def samples_for(q: float) -> int:
    """Fewest samples that carry quantile `q`: five must lie beyond it."""
    return math.ceil(round(_SAMPLES_BEYOND / (1 - q), 6))


def upper_bound_ms(samples_ns: Samples, quantile: float = 0.5) -> float | None:
    """One-sided 95 % upper confidence bound of a latency quantile, in milliseconds.

    The bound is an order statistic, so it assumes no distribution. What disturbs a machine lasts longer than a call,
    so the calls of one round are not independent: the number of samples is divided by how much more the share of
    samples above the quantile varies between rounds than it would if they were. (Resampling rounds gives the same for
    the median, but has the p95 of 20 rounds below the truth in a quarter of all runs.)

    Args:
        samples_ns: `[rounds, per_round]` nanoseconds.
        quantile: Which quantile, 0.5 to below 1; 0.95 is p95.

    Returns:
        None where the samples cannot carry it: fewer than 2 / (1 - quantile) rounds (5 at least, 40 for p95), or
        rounds so unlike each other that no sample is surely above.

    Source:
        Woodruff, "Confidence Intervals for Medians and Other Position Measures", JASA 47(260), 1952: a quantile of
        clustered samples by inverting the interval of a proportion. Exact binomial limits are ours.
    """
    rounds, per_round = samples_ns.shape
    if rounds < max(_FEWEST_ROUNDS, round(2 / (1 - quantile), 6)):
        return None
    from scipy.special import bdtr, ndtri, stdtrit  # a timing worker imports this file and stays light

    values = np.sort(samples_ns, axis=None)
    shares = (samples_ns > np.quantile(values, quantile)).mean(axis=1)
    alike = np.clip(shares.var(ddof=1) * per_round / (quantile * (1 - quantile)), 1.0, per_round)
    # The variance between few rounds is itself uncertain, as Student's t has it.
    surely = (ndtri(_CONFIDENCE) / stdtrit(rounds - 1, _CONFIDENCE)) ** 2
    count = min(_MOST_INDEPENDENT, max(1, int(values.size / alike * surely)))
    # The k-th of `count` independent samples is above the quantile unless k or more of them lie below it.
    rank = int(np.searchsorted(bdtr(np.arange(count), count, quantile), _CONFIDENCE)) + 1
    return float(values[math.ceil(rank / count * values.size) - 1]) / 1e6 if rank <= count else None


def paired_ratio(samples_ns: Samples, baseline_ns: Samples, *, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """Speed-up of `samples_ns` over `baseline_ns`, with its 95 % bootstrap interval.

        ratio = median_r ( median(baseline[r]) / median(samples[r]) )

    Args:
        samples_ns: `[rounds, per_round]` nanoseconds.
        baseline_ns: `[rounds, any]` nanoseconds of the same rounds.
        seed: Seed of the resampling.

    Raises:
        MeasureError: The numbers of rounds differ, so the samples cannot be paired.
    """
    rounds = len(samples_ns)
    if len(baseline_ns) != rounds:
        raise MeasureError(f"cannot compare {rounds} rounds with {len(baseline_ns)}", hint="measure both in one run")
    from scipy.stats import bootstrap  # a timing worker imports this file and stays light

    ratios = np.median(baseline_ns, axis=1) / np.median(samples_ns, axis=1)
    ratio = float(np.median(ratios))
    if rounds == 1:  # nothing to resample
        return ratio, (ratio, ratio)
    found = bootstrap(
        (ratios,),
        np.median,
        n_resamples=_RESAMPLES,
        confidence_level=_CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return ratio, (float(found.low), float(found.high))


def half_width(ratio: float, interval: tuple[float, float]) -> float:
    """Larger distance from `ratio` to an end of its interval, relative to `ratio`."""
    return max(interval[1] - ratio, ratio - interval[0]) / ratio


def noise_floor(timing: Timing, twin: Timing, *, seed: int = 0) -> float:
    """Largest speed-up, less 1, that this run could show between two workers of one artifact.

    It is the far end of the A/A interval: 0.03 means that up to 3 % may be noise.

    Raises:
        MeasureError: The timings are not of the same run.
    """
    _, (low, high) = paired_ratio(twin.samples_ns, timing.samples_ns, seed=seed)
    return max(high, 1 / low) - 1


def compare(timing: Timing, baseline: Timing, *, floor: float, seed: int = 0) -> Comparison:
    """Compare two timings of one run.

    Args:
        timing: The artifact of interest.
        baseline: What it is compared with.
        floor: Noise floor of the run, relative; less than 1 % is taken as 1 %.
        seed: Seed of the resampling.

    Returns:
        "faster" only where the whole interval lies above 1 + floor, "slower" only where it lies below
        1 / (1 + floor).

    Raises:
        MeasureError: The timings are not of the same run.
    """
    ratio, interval = paired_ratio(timing.samples_ns, baseline.samples_ns, seed=seed)
    return Comparison(baseline.artifact.name, ratio, interval, _verdict(interval, floor))


def _verdict(interval: tuple[float, float], floor: float) -> Verdict:
    margin = 1 + max(floor, SMALLEST_FLOOR)
    if interval[0] > margin:
        return "faster"
    if interval[1] < 1 / margin:
        return "slower"
    return "indistinguishable"
