"""`--latency fastest`: the least time within the budget of accuracy, and a longer one where that was too little."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock
from unittest.mock import Mock

import pytest

from deploypruner.build import joint
from deploypruner.build.bounds import bounds_of
from deploypruner.build.choices import check_choices
from deploypruner.build.joint import too_fast
from deploypruner.build.state import Given
from deploypruner.errors import RecipeError
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.reading import read_recipe
from deploypruner.records import Setting
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Goal
from deploypruner.search.judge import Verdict
from deploypruner.search.loop import RESERVE
from deploypruner.search.pace import find_pace
from deploypruner.search.time_limit import TimeLimit
from tests.test_bounds import built, kept

FASTEST = Budget(latency="fastest")


def found(*, allowed: float, spent: float = 0.0, train: bool = False, paces: tuple[float, ...] = ()) -> float:
    """Of a model of 10 ms whose plan of t ms loses 10 - t points, and half of that after a brief training."""
    lost = {"judge": 0}

    def look(keep: float) -> Verdict:
        lost["judge"] += 1
        return Verdict("loss", 0.1, 90 - (10 - keep), 100)

    def solved(tally: Any, ms: float) -> Any:
        return SimpleNamespace(keep=ms, predicted_ms=ms, fastest_ms=1.0, dense_ms=10.0)

    judge = SimpleNamespace(dense=Verdict("loss", 0.1, 90.0, 100), look=look)
    request: Any = SimpleNamespace(
        allowed=allowed,
        paces=paces,
        say=lambda line: None,
        train=(lambda judge, keep: Verdict("loss", 0.1, 90 - (10 - keep) / 2, 100)) if train else None,
    )
    goal = find_pace(
        *(request, Goal(FASTEST, 10.0), judge, SimpleNamespace(name="scores", solve=solved)),
        model=SimpleNamespace(tally=None, ms=lambda keep: 10.0),
        spent=spent,
        limit=TimeLimit(),
        seen=Mock(),
    )
    assert goal.budget.latency_ms is not None
    return goal.budget.latency_ms * (1 - RESERVE) / 1.02


@pytest.mark.parametrize(
    ("allowed", "spent", "train", "least"), [(4.0, 0.0, False, 6.0), (4.0, 1.0, False, 7.0), (4.0, 1.0, True, 4.0)]
)
def test_the_least_time_loses_what_is_left_beside_the_precision(allowed, spent, train, least):
    ms = found(allowed=allowed, spent=spent, train=train)
    assert least <= ms <= least * 10 ** (1 / 2**5)


def test_where_nothing_keeps_the_accuracy_the_dense_model_stays():
    assert found(allowed=0.0) == pytest.approx(10.0, rel=1e-4)


def test_after_a_time_that_lost_too_much_a_longer_one_is_tried_half_the_way_to_the_dense_model():
    assert found(allowed=4.0, paces=(2.5,)) * 1.02 / (1 - RESERVE) == pytest.approx(5.0, rel=1e-4)


def refused(paces: tuple[float, ...], pace: str = "2.5ms") -> Any:
    build = built(FASTEST, bound=2.4)
    build.found = SearchResult(Setting("openvino", "int8"), 10.0, 1.0, pace=pace, paces=paces)
    build.remarks = ()
    return build


def test_a_result_that_loses_too_much_goes_back_to_the_search_twice_at_the_most():
    with mock.patch.object(joint, "earlier_points", return_value=()):
        with mock.patch.object(joint, "kept_of", return_value=kept(2.0)):
            again = too_fast(refused(()))
            assert again is not None
            assert again.changes["paces"] == (2.5,)
            assert "2.5 ms lost 2 points in the end, 1 allowed" in again.why
            assert too_fast(refused((1.0, 1.6))) is None
            assert too_fast(refused((), pace="")) is None, "a time that was asked for is not changed"
        with mock.patch.object(joint, "kept_of", return_value=kept(0.5)):
            assert too_fast(refused(())) is None


def test_the_accuracy_is_what_decided_about_a_time_that_was_found():
    bounds = bounds_of(refused(()), kept(0.5))
    assert bounds["active"] == "accuracy"
    assert bounds["accuracy"]["decided"] == ["the time, 2.5 ms"]
    assert bounds["budget"]["allowed"] == 2.5


def test_what_it_cannot_be_found_without_is_refused_before_any_work():
    asked = {"model": {"source": "net.pt2"}, "prune": {"latency": "fastest"}}
    for more, said in (
        ({}, "there is no data"),
        ({"data": {"source": "photos"}, "search": {"plans": 1}}, "search.plans is 1"),
    ):
        with pytest.raises(RecipeError, match=said):
            check_choices(read_recipe(None, {**asked, **more}), Given())
