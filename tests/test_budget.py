"""A budget checks itself: what a user may write, and what is said of everything else."""

from __future__ import annotations

import math

import pytest

from deploypruner.errors import RecipeError
from deploypruner.recipe.budget import Budget, parse_latency


@pytest.mark.parametrize(
    ("text", "ms", "quantile"),
    [
        (5, 5.0, 0.5),
        (0.25, 0.25, 0.5),
        ("5", 5.0, 0.5),
        ("5ms", 5.0, 0.5),
        ("5 ms", 5.0, 0.5),
        (" 5MS ", 5.0, 0.5),
        ("800us", 0.8, 0.5),
        ("800µs", 0.8, 0.5),
        (".5ms", 0.5, 0.5),
        ("1.5e1ms", 15.0, 0.5),
        ("0.02s", 20.0, 0.5),
        ("5ms@p95", 5.0, 0.95),
        ("5ms @ P99", 5.0, 0.99),
        ("5@p50", 5.0, 0.5),
        ("5ms@median", 5.0, 0.5),
    ],
)
def test_a_latency_is_a_time_and_perhaps_a_quantile(text, ms, quantile):
    found_ms, found_quantile = parse_latency(text)
    assert found_ms == pytest.approx(ms)
    assert found_quantile == quantile


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "must be more than 0 ms, got '0'"),
        ("0", "must be more than 0 ms"),
        ("-1ms", "must be more than 0 ms, got '-1ms'"),
        (-1.0, "must be more than 0 ms"),
        (math.nan, "must be more than 0 ms"),
        (math.inf, "must be more than 0 ms"),
        ("1e999ms", "must be more than 0 ms"),
        ("1e-999ms", "must be more than 0 ms"),
        ("5 parsecs", "'5 parsecs' is not a time"),
        ("5 min", "is not a time"),
        ("five", "is not a time"),
        ("", "is not a time"),
        ("nan", "is not a time"),
        ("5ms 3ms", "is not a time"),
        ("5,3ms", "is not a time"),
        ("5ms@p42", "no quantile called 'p42'"),
        ("5ms@", "no quantile called ''"),
    ],
)
def test_what_is_no_latency_is_named_with_an_example(value, said):
    with pytest.raises(RecipeError) as caught:
        Budget(latency=value)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("macs", [0, -0.5, 1.01, math.nan, math.inf])
def test_a_share_of_the_multiply_adds_is_between_0_and_1(macs):
    with pytest.raises(RecipeError, match="--macs is the fraction of multiply-adds that remain"):
        Budget(macs=macs)


@pytest.mark.parametrize("speedup", [0, -2, 0.99, math.nan, math.inf])
def test_a_speedup_is_at_least_1(speedup):
    with pytest.raises(RecipeError, match="--speedup is dense time / compiled time, at least 1"):
        Budget(speedup=speedup)


def test_a_budget_is_one_number():
    with pytest.raises(RecipeError, match="a budget is one number, got nothing"):
        Budget()
    with pytest.raises(RecipeError, match="got --macs and --speedup"):
        Budget(macs=0.5, speedup=2)


@pytest.mark.parametrize(
    ("budget", "kind", "ms", "text"),
    [
        (Budget(macs=0.5), "macs", None, "--macs 0.5"),
        (Budget(speedup=2), "speedup", None, "--speedup 2"),
        (Budget(latency=5), "latency", 5.0, "--latency 5ms"),
        (Budget(latency="5ms@p95"), "latency", 5.0, "--latency 5ms@p95"),
        (Budget(latency="800us"), "latency", 0.8, "--latency 800us"),
    ],
)
def test_a_budget_reads_back_as_the_user_wrote_it(budget, kind, ms, text):
    assert (budget.kind, str(budget)) == (kind, text)
    assert budget.latency_ms == (None if ms is None else pytest.approx(ms))
    assert budget.quantile == (0.95 if "p95" in text else 0.5)
