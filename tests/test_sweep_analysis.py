"""What a population says: distributions by hand, a known optimum, and verdicts on populations made for them."""

from __future__ import annotations

import numpy as np
import pytest

from deploypruner.errors import RecipeError
from deploypruner.sweep.analysis import best_parameter_bucket, buckets_of, concentration, optimum_of, winners_of
from deploypruner.sweep.conjectures import CostRegime, conjectures
from deploypruner.sweep.records import Bucket, DenseModel, Sample, SweepSettings, Winner

DENSE = DenseModel(macs=1000, params=100, ms=8.0)


def a_sample(name: str, drop: float, *, macs: int = 500, params: int = 50, std: float = 0.12) -> Sample:
    return Sample(name, drop, macs, params, std, None)


def a_population(optimum: float, *, macs: int = 500, noise: float = 0.0, count: int = 60) -> tuple[Sample, ...]:
    """Of fixed MACs, whose drop is 1 + 40 (x - optimum)^2 at x times the dense model's MACs per parameter."""
    rng = np.random.default_rng(5)
    found = []
    for number, relative in enumerate(np.linspace(0.7, 1.4, count)):
        params = round(macs / (10 * relative) * 1000)
        exact = 1000 * macs / params / 10
        drop = 1 + 40 * (exact - optimum) ** 2 + noise * float(rng.standard_normal())
        found.append(Sample(f"{number:03}", drop, 1000 * macs, params, 0.12, None))
    return tuple(found)


LARGE = DenseModel(macs=1_000_000, params=100_000, ms=None)


def test_the_distribution_of_the_drop_is_the_share_that_loses_less():
    assert Bucket(0, 1, (1.0, 2.0, 2.0, 4.0)).edf == ((1.0, 0.0), (2.0, 0.25), (2.0, 0.25), (4.0, 0.75))


def test_recipes_are_sorted_into_sub_spaces_by_their_standard_deviation():
    samples = [a_sample("a", 3, std=0.01), a_sample("b", 2, std=0.05), a_sample("c", 1, std=0.04)]
    samples += [a_sample("d", 5, std=0.29), a_sample("e", 4, std=0.31)]
    assert buckets_of(samples) == (
        Bucket(0.0, 0.05, (1, 3)),
        Bucket(0.05, 0.1, (2,)),
        Bucket(0.2, 0.3, (4, 5)),  # the last holds what lies beyond it, too
    )


def test_the_budget_of_a_parameter_is_relative_to_the_dense_model():
    assert DENSE.macs_per_param == 10
    assert a_sample("a", 0, macs=500, params=40).budget(DENSE) == pytest.approx(1.25)


def test_the_optimum_of_an_exact_parabola_is_found_and_its_interval_is_a_point():
    found = optimum_of(a_population(1.1), LARGE, seed=0)
    assert found.at == pytest.approx(1.1, abs=1e-6)
    assert found.interval == pytest.approx((1.1, 1.1), abs=1e-6)
    assert (found.drop, found.inside) == (pytest.approx(1.0, abs=1e-6), 1.0)


def test_the_interval_holds_the_truth_and_shrinks_with_the_noise():
    wide, narrow = (optimum_of(a_population(1.1, noise=noise), LARGE, seed=0) for noise in (1.0, 0.1))
    for found in (wide, narrow):
        assert found.interval[0] < 1.1 < found.interval[1]
    assert narrow.interval[1] - narrow.interval[0] < 0.3 * (wide.interval[1] - wide.interval[0])


def test_an_optimum_beyond_what_was_tried_is_the_end_and_says_so():
    found = optimum_of(a_population(2.0), LARGE, seed=0)
    assert found.at == found.observed[1] == pytest.approx(1.4, abs=1e-3)
    assert found.inside == 0


def test_nothing_is_fitted_to_too_little():
    population = a_population(1.1)
    assert optimum_of(population[:7], LARGE, seed=0) is None
    assert optimum_of([a_sample(str(n), n) for n in range(20)], DENSE, seed=0) is None  # one budget
    flat = [a_sample(str(n), 1.0, params=40 + n) for n in range(20)]
    assert optimum_of(flat, DENSE, seed=0) is None


def test_winners_are_the_best_tenth_and_three_at_the_least():
    samples = [a_sample(f"{n:02}", 10 - n) for n in range(10)]
    assert [s.name for s in winners_of(samples)] == ["09", "08", "07"]
    assert len(winners_of([*samples, *(a_sample(f"x{n}", 50) for n in range(40))])) == 5


def test_concentration_is_what_random_choices_do_not_do():
    samples = [a_sample(f"{n:02}", abs(n - 20), params=10 + n) for n in range(40)]
    won, every, p = concentration(samples, lambda s: s.params, seed=0)
    assert (won, every) == ((28, 31), (10, 49))  # the four best: 20, then 19 before 21, and 18 before 22
    assert p < 0.01
    scattered = [a_sample(f"{n:02}", (7 * n) % 40, params=10 + n) for n in range(40)]
    assert concentration(scattered, lambda s: s.params, seed=0)[2] > 0.2


def test_the_best_bucket_of_parameters_has_most_winners():
    samples = [a_sample(f"{n}", n, params=p) for n, p in enumerate((41, 42, 61, 43, 62, 80))]
    assert best_parameter_bucket(samples, DENSE) == (pytest.approx(0.4), pytest.approx(0.45), 2, 3)


def verdicts(regime: CostRegime, *others: CostRegime) -> list[str]:
    return [one.verdict for one in conjectures(regime, others, seed=0)]


def test_a_population_with_its_optimum_at_the_dense_model_supports_what_one_cost_can():
    regime = CostRegime("--macs 0.5", a_population(1.0, noise=0.3), LARGE)
    assert verdicts(regime) == ["supported", "not tested", "supported", "not tested"]
    said = conjectures(regime, seed=0)
    assert "The 6 winners of 60 recipes" in said[0].evidence
    assert "by the choice of the space" in said[1].evidence
    assert "--beside" in said[3].evidence


def test_an_optimum_far_from_the_dense_model_contradicts_the_third():
    assert verdicts(CostRegime("--macs 0.5", a_population(1.25, noise=0.1), LARGE))[2] == "contradicted"


def test_an_interval_as_wide_as_everything_shows_nothing():
    rng = np.random.default_rng(0)
    samples = [a_sample(f"{n:02}", float(d), params=40 + n) for n, d in enumerate(rng.standard_normal(20), start=1)]
    assert verdicts(CostRegime("--macs 0.5", tuple(samples), DENSE))[2] == "not shown"


def test_an_optimum_at_the_end_towards_the_dense_model_contradicts_nothing():
    """All recipes have more MACs per parameter than the dense model, and those with the fewest do best."""
    samples = [a_sample(f"{n:02}", float(n), params=48 - n) for n in range(20)]
    assert min(sample.budget(DENSE) for sample in samples) > 1
    assert verdicts(CostRegime("--macs 0.5", tuple(samples), DENSE))[2] == "not shown"


def test_several_costs_say_whether_the_optimum_grows_and_whether_the_drop_follows():
    def at(optimum: float, macs: int) -> CostRegime:
        moved = tuple(
            Sample(s.name, s.drop + 30 * (optimum - 0.9), s.macs, s.params, s.std, s.ms)
            for s in a_population(optimum, macs=macs)
        )
        return CostRegime(f"--macs {macs / 1000:g}", moved, LARGE)

    growing = [at(0.9, 700), at(1.0, 500), at(1.1, 300), at(1.2, 200)]
    found = conjectures(growing[1], [growing[0], *growing[2:]], seed=0)
    assert [one.verdict for one in found[2:]] == ["supported", "supported"]
    assert "--macs 0.7: 0.900, --macs 0.5: 1.000, --macs 0.3: 1.100, --macs 0.2: 1.200" in found[2].evidence
    falling = [at(1.1, 700), at(1.0, 500)]
    assert conjectures(falling[1], falling[:1], seed=0)[2].verdict == "contradicted"


def test_few_recipes_say_nothing():
    assert verdicts(CostRegime("--macs 0.5", a_population(1.0)[:5], LARGE)) == ["not tested"] * 4


def test_other_macs_at_alike_parameters_test_the_second():
    rng = np.random.default_rng(1)
    samples = tuple(
        a_sample(f"{n:02}", 20 * abs(macs - 520) / 1000 + 0.01 * n, macs=macs, params=int(rng.integers(45, 56)))
        for n, macs in enumerate(range(420, 620, 4))
    )
    assert verdicts(CostRegime("--speedup 2", samples, DENSE))[1] == "supported"


def test_a_winner_is_expected_to_lose_what_other_seeds_lose():
    winner = Winner("a", "space", 1.0, (1.5, 2.5), 500, 50, None, {})
    assert winner.expected == 2.0
    assert Winner("a", "space", 1.0, (), 500, 50, None, {}).expected == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 0}, "--samples must be at least 1, got 0"),
        ({"candidates": -1}, "--candidates"),
        ({"finalists": 0}, "--finalists"),
        ({"workers": 0}, "--workers"),
        ({"std": (0.2, 0.1)}, "--ratio-std must be at least 0 and less than 0.1, got 0.2"),
        ({"std": (0.0, 2.0)}, "--ratio-std"),
    ],
)
def test_sizes_that_make_no_sweep_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        SweepSettings(**settings)
