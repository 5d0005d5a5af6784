"""Which bound is said to have decided a result, and what is left of each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deploypruner.build.bounds import bounds_of, float_for_accuracy
from deploypruner.recipe.budget import Budget
from deploypruner.records import Setting
from deploypruner.report.bounds import bounds_sentence
from deploypruner.search.certify import Certificate
from deploypruner.search.found import SearchResult
from deploypruner.search.gaps import Gap
from deploypruner.search.kept import Kept


def built(
    budget: Budget, *, after: int = 400, bound: float | None = None, gave_up: str = "", precision: Any = None
) -> Any:
    timed = budget.macs is None
    return SimpleNamespace(
        recipe=SimpleNamespace(prune=SimpleNamespace(budget=budget)),
        planned=SimpleNamespace(macs_before=1000, macs_after=after, dropped=()),
        assigned={},
        found=SearchResult(Setting("openvino", "int8"), 8.0, 1.0, gave_up=gave_up) if timed else None,
        certificate=Certificate("pruned int8 on openvino", bound, bound, True) if timed else None,
        precision=precision or {},
    )


def kept(lost: float, allowed: float = 1.0) -> Kept:
    return Kept("pruned int8", "openvino", Gap("accuracy", 90.0, 90.0 - lost, lost, True), allowed)


TRIED = {
    "accuracy": {
        "allowed": 1.0,
        "needed": None,
        "trials": [
            {"float_layers": 1, "lost": 3.0, "layers": ["a"]},
            {"float_layers": 4, "lost": 0.5, "layers": ["a", "b", "c", "d"]},
            {"float_layers": 2, "lost": 0.75, "layers": ["a", "b"]},
        ],
    }
}


def test_a_bound_is_active_where_it_decided_something():
    latency = Budget(latency="5ms")
    cases = [
        (built(latency, bound=4.75), kept(0.25), "latency"),
        (built(latency, bound=4.75, gave_up="int8 on openvino, 1 thread"), kept(0.25), "both"),
        (built(latency, bound=4.75, precision=TRIED), kept(0.25), "both"),
        (built(latency, bound=4.75, after=1000), kept(0.25), "neither"),
        (built(latency, bound=5.5, after=1000), kept(0.25), "latency"),
        (built(latency, bound=4.75, after=1000), kept(2.0), "accuracy"),
        (built(Budget(macs=0.5)), None, "macs"),
    ]
    for build, quality, active in cases:
        assert bounds_of(build, quality)["active"] == active


@pytest.mark.parametrize(
    ("budget", "bound", "margin", "unit"),
    [
        (Budget(latency="5ms"), 4.75, 0.25, "ms"),
        (Budget(latency="5ms"), 5.5, -0.5, "ms"),
        (Budget(speedup=2), 2.125, 0.125, "x"),
        (Budget(speedup=2), None, None, "x"),
        (Budget(macs=0.5), None, 10.0, "% of the multiply-adds"),
    ],
)
def test_the_margin_is_in_the_unit_of_the_bound(budget, bound, margin, unit):
    found = bounds_of(built(budget, bound=bound), kept(0.25))
    assert (found["budget"]["margin"], found["budget"]["unit"]) == (margin, unit)
    assert (found["accuracy"]["margin"], found["accuracy"]["unit"]) == (0.75, "points")


def test_float_layers_are_the_fewest_that_kept_the_accuracy():
    assert float_for_accuracy(built(Budget(macs=0.5), precision=TRIED)) == ("a", "b")
    beyond = {"accuracy": {**TRIED["accuracy"], "needed": 0.5}}
    assert float_for_accuracy(built(Budget(macs=0.5), precision=beyond)) == ()


def test_a_sentence_says_what_each_decided_and_what_is_left():
    build = built(Budget(latency="5ms"), bound=4.75, precision=TRIED)
    assert bounds_sentence({"bounds": bounds_of(build, kept(2.0))}) == (
        "active: both; latency decided multiply-adds 1.00 k -> 400, 0.250 of 5 ms left; "
        "accuracy decided 2 layers float, the refusal, missed by 1.0 points"
    )
    assert bounds_sentence({"bounds": bounds_of(built(Budget(speedup=2), bound=2.125), None)}) == (
        "active: speed-up; speed-up decided multiply-adds 1.00 k -> 400, 0.125x more than asked; "
        "accuracy decided nothing, and how much of it is left is not known"
    )
    assert bounds_sentence({"bounds": bounds_of(built(Budget(macs=0.5)), kept(0.4))}) == (
        "active: multiply-adds; multiply-adds decided 1.00 k -> 400, 10.0 of 50 % left; "
        "accuracy decided nothing, 0.6 of 1 points left"
    )
    assert bounds_sentence({}) == ""


def test_accuracy_that_was_gained_is_not_said_to_be_left_of_what_is_allowed():
    found = bounds_of(built(Budget(latency="5ms"), bound=4.75), kept(-3.75, allowed=3.0))
    assert "accuracy decided nothing, all 3 points left, 3.8 gained" in bounds_sentence({"bounds": found})
