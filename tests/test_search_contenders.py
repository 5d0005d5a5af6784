"""The closed loop goes on to the next plan of the pool where it came to less than that one promises."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from deploypruner.errors import BudgetError
from deploypruner.recipe.budget import Budget
from deploypruner.search.contenders import Closed, close_contenders
from deploypruner.search.goal import Assessment, Goal
from deploypruner.search.loop import RESERVE, Trial
from deploypruner.search.selection import Chosen, Contender
from deploypruner.search.time_limit import TimeLimit
from tests.test_equal_time import Model, objective

GOAL = Goal(Budget(latency=4.0), 10.0)


def closed(
    *contenders: tuple[str, int, float, float], loss: dict[int, float], minutes: float = float("inf")
) -> tuple[Closed, list[str]]:
    """Close the loop for contenders (name, width judged, its loss, milliseconds of a channel in truth).

    What a plan loses when it is judged is said for each width; a measurement takes a second.
    """
    truth = {name: per_channel for name, _, _, per_channel in contenders}
    said, now = list[str](), [0.0]
    running = [contenders[0][0]]

    def trial(keep: Any, goal: Goal) -> Trial:
        now[0] += 1
        ms = truth[running[0]] * len(keep["g"])
        return Trial(Assessment(ms, ms, ms, ms, ms / 4.0, ms / 4.0))

    def contender(name: str, width: int, promised: float) -> Contender:
        way = objective(name, least=100)

        def solve(scale: float, ms: float) -> Any:
            running[0] = name
            return way.solve(scale, ms)

        judged = way.solve(0.01, width * 0.01)
        return Contender(type(way)(name, solve), Model(), judged, promised)  # type: ignore[arg-type]

    def say(line: str) -> None:
        said.append(line)
        running[0] = line.rpartition(" by ")[2]

    chosen = Chosen(
        tuple(contender(name, width, promised) for name, width, promised, _ in contenders),
        seen=SimpleNamespace(add=lambda *_, **__: None),  # type: ignore[arg-type]
        goal=GOAL,
        judge=SimpleNamespace(look=lambda keep: SimpleNamespace(loss=loss[len(keep["g"])])),  # type: ignore[arg-type]
    )
    bench: Any = SimpleNamespace(trial=trial)
    limit = TimeLimit(minutes, lambda: now[0])
    return close_contenders(chosen, bench, limit=limit, say=say, on_round=lambda line: None), said


def test_the_plan_that_was_judged_is_measured_first_and_is_taken_where_it_keeps_the_time():
    found, said = closed(("a", 390, 0.2, 0.01), ("b", 380, 0.3, 0.01), loss={390: 0.2})
    assert (found.objective.name, found.outcome.solution.widths) == ("a", {"g": 390})
    assert [plan.widths["g"] for _, plan in found.tried] == [390]
    assert not said


def test_the_next_plan_is_tried_where_the_loop_came_to_less_than_it_promises():
    """The first is 25 % slower than it seemed and ends with 315 channels, which lose 0.5; the second keeps 380."""
    narrow = int(4 * (1 - RESERVE) / 0.0125)
    found, said = closed(("a", 390, 0.2, 0.0125), ("b", 385, 0.3, 0.01), loss={narrow: 0.5})
    assert (found.objective.name, found.outcome.solution.widths) == ("b", {"g": 385})
    assert said == ["the plan before came to 0.5; 0.3 is promised by b"]
    assert [(name, plan.widths["g"]) for name, plan in found.tried] == [("a", 390), ("a", narrow), ("b", 385)]
    assert len(found.outcome.rounds) == 3, "every round is reported"


def test_the_first_stays_where_the_next_does_no_better_in_the_end():
    """It is slower than it seemed, too, and keeps 375 channels in the end."""
    narrow, narrower = int(4 * (1 - RESERVE) / 0.0125), int(4 * (1 - RESERVE) / 0.0105)
    found, _ = closed(("a", 390, 0.2, 0.0125), ("b", 385, 0.3, 0.0105), loss={narrow: 0.5, narrower: 0.6})
    assert (found.objective.name, found.outcome.solution.widths) == ("a", {"g": narrow})


def test_a_contender_that_keeps_no_budget_makes_room_for_the_next_and_the_first_error_stays():
    found, said = closed(("a", 390, 0.2, 0.08), ("b", 385, 0.3, 0.01), loss={})
    assert found.objective.name == "b"
    assert said == ["the plan before kept no budget; 0.3 is promised by b"]
    with pytest.raises(BudgetError, match=r"a median of 31\.2 ms"):
        closed(("a", 390, 0.2, 0.08), ("b", 385, 0.3, 0.09), loss={})


def test_no_further_loop_begins_when_the_time_is_over():
    narrow = int(4 * (1 - RESERVE) / 0.0125)
    found, said = closed(("a", 390, 0.2, 0.0125), ("b", 385, 0.3, 0.01), loss={narrow: 0.5, 385: 0.3}, minutes=2 / 60)
    assert found.objective.name == "a"
    assert not said
