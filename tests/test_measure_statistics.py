from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploypruner.errors import MeasureError
from deploypruner.measure.statistics import (
    compare,
    median_ms,
    noise_floor,
    paired_ratio,
    quantile_ms,
    samples_for,
    upper_bound_ms,
)
from deploypruner.records import Artifact, Timing


def timing(samples_ns: object, name: str = "a") -> Timing:
    artifact = Artifact(name, Path(f"{name}.onnx"), "onnx", "fp32")
    return Timing(artifact, "openvino", 1, np.array(samples_ns, dtype=np.int64), 0.0, 0, 0)


def drift(rounds: int, seed: int) -> np.ndarray:
    """`[rounds, 1]` nanoseconds of a machine that wanders between 1 and 1.4 ms."""
    return 1e6 * np.random.default_rng(seed).uniform(1, 1.4, size=(rounds, 1))


def noisy(speed: float, *, seed: int, rounds: int = 20, per_round: int = 20, machine: int = 0) -> Timing:
    """Samples `speed` times as long as the machine's drift, with 3 % of noise and a tail."""
    rng = np.random.default_rng(seed)
    tail = rng.exponential(0.03, size=(rounds, per_round))
    noise = rng.normal(0, 0.03, size=(rounds, per_round))
    return timing(speed * drift(rounds, machine) * (1 + noise + tail))


def test_ratio_by_hand() -> None:
    baseline = np.array([[2, 2, 9], [4, 4, 4], [9, 9, 1]])
    samples = np.array([[1, 1], [1, 1], [3, 3]])
    ratio, (low, high) = paired_ratio(samples, baseline)
    assert ratio == 3.0
    assert (low, high) == (2.0, 4.0)


def test_drift_shared_by_a_round_cancels() -> None:
    machine = drift(12, seed=1) * np.ones((1, 5))
    assert paired_ratio(machine / 2, machine) == (2.0, (2.0, 2.0))


def test_more_than_one_means_faster_than_the_baseline() -> None:
    half, full = timing([[500_000] * 5] * 10, "half"), timing([[1_000_000] * 5] * 10, "full")
    comparison = compare(half, full, floor=0.0)
    assert (comparison.against, comparison.ratio, comparison.verdict) == ("full", 2.0, "faster")
    assert compare(full, half, floor=0.0).verdict == "slower"


@pytest.mark.parametrize("seed", range(20))
def test_the_same_artifact_twice_is_indistinguishable(seed: int) -> None:
    a, twin = noisy(1.0, seed=2 * seed), noisy(1.0, seed=2 * seed + 1)
    assert compare(twin, a, floor=noise_floor(a, twin)).verdict == "indistinguishable"


@pytest.mark.parametrize("seed", range(5))
def test_five_percent_slower_is_found(seed: int) -> None:
    base, slow = noisy(1.0, seed=10 + seed, rounds=60), noisy(1.05, seed=20 + seed, rounds=60)
    comparison = compare(slow, base, floor=0.01)
    assert comparison.verdict == "slower"
    assert comparison.ratio == pytest.approx(1 / 1.05, abs=0.012)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(100):
        _, (low, high) = paired_ratio(
            noisy(1.25, seed=1000 + seed).samples_ns, noisy(1.0, seed=5000 + seed).samples_ns
        )
        covered += low <= 0.8 <= high
    assert 90 <= covered <= 100


@pytest.mark.parametrize(
    ("faster_by", "floor", "verdict"),
    [
        (1.005, 0.0, "indistinguishable"),  # within the 1 % that is never claimed
        (1.02, 0.0, "faster"),
        (1.02, 0.03, "indistinguishable"),  # within this run's noise
        (1 / 1.02, 0.0, "slower"),
        (1 / 1.02, 0.03, "indistinguishable"),
    ],
)
def test_a_verdict_needs_more_than_the_floor(faster_by: float, floor: float, verdict: str) -> None:
    base = timing([[1_000_000] * 5] * 10)
    other = timing([[1_000_000 / faster_by] * 5] * 10)
    assert compare(other, base, floor=floor).verdict == verdict


def test_an_interval_that_reaches_into_the_floor_claims_nothing() -> None:
    base = timing([[100] * 5] * 10)
    unsteady = timing([[60] * 5, [110] * 5] * 5)
    assert compare(unsteady, base, floor=0.01).verdict == "indistinguishable"


def test_noise_floor_by_hand_is_the_far_end_of_the_interval() -> None:
    a, twin = timing([[100] * 5] * 10), timing([[125] * 5] * 10)
    assert noise_floor(a, twin) == pytest.approx(0.25)
    assert noise_floor(twin, a) == pytest.approx(0.25)
    assert noise_floor(a, a) == 0.0


def test_timings_of_different_runs_are_refused() -> None:
    with pytest.raises(MeasureError, match=r"cannot compare 2 rounds with 3[\s\S]*measure both in one run"):
        paired_ratio(np.ones((2, 5)), np.ones((3, 5)))


def test_median_by_hand() -> None:
    assert median_ms(np.array([[1_000_000, 3_000_000], [2_000_000, 90_000_000]])) == 2.5


@pytest.mark.parametrize(
    ("samples", "q", "carried"), [(99, 0.95, False), (100, 0.95, True), (499, 0.99, False), (500, 0.99, True)]
)
def test_a_quantile_needs_five_samples_beyond_it(samples: int, q: float, carried: bool) -> None:
    assert (quantile_ms(np.ones((1, samples)), q) is not None) == carried


def test_quantile_by_hand() -> None:
    assert quantile_ms(np.arange(101).reshape(1, 101) * 1e6, 0.95) == pytest.approx(95.0)


def test_the_same_seed_gives_the_same_interval() -> None:
    a, b = noisy(1.0, seed=1).samples_ns, noisy(1.0, seed=2).samples_ns
    assert paired_ratio(a, b, seed=7) == paired_ratio(a, b, seed=7)


def clustered(rng: np.random.Generator, rounds: int, per_round: int, kind: str) -> np.ndarray:
    """Milliseconds in nanoseconds whose rounds differ as a machine's do: by a little, or in two speeds."""
    steady = 1 + 0.05 * rng.standard_normal((rounds, 1))
    two_speeds = np.where(rng.random((rounds, 1)) < 0.3, 1.5, 1.0) * (1 + 0.02 * rng.standard_normal((rounds, 1)))
    machine = {"steady": steady, "two speeds": two_speeds}[kind]
    calls = 0.02 * rng.standard_normal((rounds, per_round)) + rng.exponential(0.02, (rounds, per_round))
    return 1e6 * machine * (1 + calls)


@pytest.mark.parametrize("kind", ["steady", "two speeds"])
@pytest.mark.parametrize(("quantile", "rounds"), [(0.5, 10), (0.5, 40), (0.95, 40), (0.95, 120)])
def test_the_upper_bound_covers_the_truth_as_often_as_it_says(kind: str, quantile: float, rounds: int) -> None:
    truth = np.quantile(clustered(np.random.default_rng(99), 50_000, 10, kind), quantile) / 1e6
    rng = np.random.default_rng(1)
    bounds = [upper_bound_ms(clustered(rng, rounds, 10, kind), quantile) for _ in range(200)]
    given = [bound for bound in bounds if bound is not None]
    # 95 % of 200 is 190, give or take 3.
    assert sum(bound >= truth for bound in given) >= 0.92 * len(given)
    assert len(given) >= 0.8 * len(bounds)


def test_calls_of_one_round_do_not_count_as_independent() -> None:
    machine = np.random.default_rng(0).uniform(1, 2, size=(40, 1))
    alone, repeated = upper_bound_ms(1e6 * machine), upper_bound_ms(1e6 * machine * np.ones((1, 50)))
    assert alone == repeated


def test_more_rounds_bring_the_bound_nearer() -> None:
    samples = clustered(np.random.default_rng(3), 160, 10, "steady")
    bounds = [upper_bound_ms(samples[:rounds]) for rounds in (10, 40, 160)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] > median_ms(samples)


def test_a_bound_that_the_rounds_cannot_carry_is_not_given() -> None:
    assert upper_bound_ms(np.ones((4, 1000))) is None
    assert upper_bound_ms(np.ones((39, 1000)), 0.95) is None
    assert upper_bound_ms(np.full((40, 50), 2e6), 0.95) == 2.0
    # One round in three is slow as a whole: nothing is surely above the p95 of 40 rounds.
    slow = np.where(np.arange(40)[:, None] % 3, 1e6, 2e6) * np.ones((1, 50))
    assert upper_bound_ms(slow, 0.95) in (None, 2.0)


@pytest.mark.parametrize(
    ("rounds", "quantile", "bound"),
    [
        (10, 0.5, 9.0),  # t is 1.833, so they count as 8; of 8 tosses 7 or more are heads in 3.5 %, 6 or more in 14 %
        (60, 0.95, None),  # count as 58, and 0.95^58 = 5.1 %: all of them may well be below
        (61, 0.95, 61.0),  # count as 59, and 0.95^59 = 4.8 %
        (100, 0.95, 99.0),  # count as 98, of which 97 or more lie below in 4.0 %, 96 or more in 13 %
    ],
)
def test_the_upper_bound_is_the_rank_of_the_textbook(rounds: int, quantile: float, bound: float | None) -> None:
    assert upper_bound_ms(1e6 * np.arange(1, rounds + 1)[:, None], quantile) == bound


def test_five_samples_beyond_by_hand() -> None:
    assert [samples_for(q) for q in (0.5, 0.95, 0.99)] == [10, 100, 500]
