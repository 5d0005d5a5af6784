"""Plans are brought to the same measured time, on machines that take a known share more or less than is predicted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from deploypruner.errors import BudgetError
from deploypruner.search.equal_time import EqualTime
from deploypruner.search.goal import Assessment
from deploypruner.search.loop import Trial
from deploypruner.search.objectives import Objective
from deploypruner.search.proposed import Proposed
from deploypruner.search.saved import Saved
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

TARGET = 4.0


@dataclass(frozen=True)
class Model:
    """Predicts `scale` ms per channel; its tally is that number."""

    scale: float = 0.01

    @property
    def tally(self) -> float:
        return self.scale

    def calibrated(self, keep, measured_ms: float, profile=None) -> Model:
        return Model(measured_ms / len(keep["g"]))

    def learned(self, keep, profile: float) -> Model:
        return Model(profile)


def plan(width: int, scale: float) -> Solution:
    ms = width * scale
    return Solution({"g": width}, {"g": np.arange(width)}, ms, width / 1000, float("nan"), 10.0, 1.0)


def objective(name: str, *, least: int = 1, jump: int = 0) -> Objective:
    """As many channels as fit, and `jump` more: a kind whose plans are never where they were predicted."""

    def solve(scale: float, ms: float) -> Solution:
        width = int(ms / scale + 1e-9)
        if width < least:
            raise BudgetError(f"{width} channels are too few")
        return plan(width + jump, scale)

    return Objective(name, solve)


@dataclass
class Machine:
    """Takes `ms(width)`, a second of the clock for each measurement."""

    per_channel: float
    profile: float | None = None
    asked: list[int] = field(default_factory=list)
    seconds: float = 0.0
    saw: list[tuple[str, int, float]] = field(default_factory=list)

    def measure(self, plan: Solution) -> Trial:
        self.asked.append(plan.widths["g"])
        self.seconds += 1
        ms = self.per_channel * plan.widths["g"]
        return Trial(Assessment(ms, ms, ms, ms, ms / TARGET, ms / TARGET), self.profile)

    def equal(self, minutes: float = float("inf"), file: Saved | None = None) -> EqualTime:
        return EqualTime(
            TARGET,
            Model(),  # type: ignore[arg-type]
            measure=self.measure,
            file=Proposed(file or Saved(None, "")),
            limit=TimeLimit(minutes, lambda: self.seconds),
            seen=lambda way, plan, ms: self.saw.append((way.name, plan.widths["g"], ms)),
        )


@pytest.mark.parametrize(("per_channel", "width"), [(0.01, 400), (0.0125, 320), (0.008, 500)])
def test_a_plan_that_is_off_its_time_is_solved_again_until_it_takes_it(per_channel, width):
    machine = Machine(per_channel)
    equal, way = machine.equal(), objective("scores")
    assert equal.settle(way, equal.solve(way)).widths == {"g": width}
    assert machine.asked == ([400] if width == 400 else [400, width])
    assert machine.saw == [("scores", asked, asked * per_channel) for asked in machine.asked]


def test_what_is_learnt_of_one_kind_is_for_it_and_what_is_refined_from_it_alone():
    equal, way = Machine(0.0125).equal(), objective("scores")
    equal.settle(way, equal.solve(way))
    assert equal.solve(objective("refined 3+1 of scores")).widths == {"g": 320}
    assert equal.solve(objective("lamp")).widths == {"g": 400}
    assert equal.model_of(objective("lamp")) is equal.model


def test_the_operations_of_a_measured_plan_are_learnt_for_plans_of_every_kind():
    equal, way = Machine(0.0125, profile=0.016).equal(), objective("scores")
    assert equal.settle(way, equal.solve(way)).widths == {"g": 320}
    assert equal.solve(objective("lamp")).widths == {"g": 250}, "4 ms at 0.016 a channel"


def test_of_plans_that_never_take_the_time_the_closest_from_below_stays():
    """Each is 24 channels wider than was asked for: 424 channels, 5.3 ms; 344, 4.3 ms; and no width but these."""
    machine = Machine(0.0125)
    equal, way = machine.equal(), objective("wide", jump=24)
    assert equal.settle(way, equal.solve(way)).widths == {"g": 344}
    assert machine.asked == [424, 344]


def test_where_its_objective_reaches_no_further_a_plan_stays_as_it_is():
    machine = Machine(0.0125)
    equal, way = machine.equal(), objective("coarse", least=350)
    assert equal.settle(way, equal.solve(way)).widths == {"g": 400}
    assert machine.asked == [400]


def test_measuring_takes_a_part_of_the_time_that_is_left_and_says_when_it_ends():
    """Ten seconds: a measurement begins in the first three of them that are long enough for one more."""
    machine = Machine(0.0125)
    equal = machine.equal(minutes=10 / 60)
    for name in ("first", "second", "third"):
        way = objective(name)
        equal.settle(way, equal.solve(way))
    assert machine.asked == [400, 320, 400]
    assert equal.limit.cuts == ["plans judged that were not all measured"]


def test_an_interrupted_search_does_not_measure_again(tmp_path):
    machine, way = Machine(0.0125), objective("scores")
    first = machine.equal(file=Saved(tmp_path / "pool.json", "one search"))
    found = first.settle(way, first.solve(way))
    again = machine.equal(file=Saved(tmp_path / "pool.json", "one search"))
    assert again.settle(way, again.solve(way)).widths == found.widths == {"g": 320}
    assert machine.asked == [400, 320]
