"""The closed loop, the goal, the choice of a setting and the certificate, on machines made of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from deploypruner.errors import BudgetError, InputError
from deploypruner.measure import Conditions, Measured
from deploypruner.measure.interference import Window
from deploypruner.recipe.budget import Budget
from deploypruner.records import Artifact, Metric, Quality, Setting, Timing
from deploypruner.search.certify import certify, widening
from deploypruner.search.choose import choose_setting
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Assessment, Goal
from deploypruner.search.loop import RESERVE, Round, Trial, close_loop


def timing(
    ms: float, *, noise: float = 0.0, pattern: str = "dense", precision: str = "fp32", runtime: str = "openvino"
) -> Timing:
    """40 rounds of 10 samples around `ms`."""
    rng = np.random.default_rng(0)
    samples = ms * 1e6 * (1 + noise * rng.standard_normal((40, 10)))
    name = f"{'dense' if pattern == 'dense' else 'pruned'} {precision}"
    artifact = Artifact(name, Path("x.onnx"), "onnx", precision, pattern)
    return Timing(artifact, runtime, 1, samples.astype(np.int64), 0.0, 0, 0)


@dataclass(frozen=True)
class Plan:
    """A candidate with one group."""

    width: int
    predicted_ms: float

    @property
    def widths(self) -> dict[str, int]:
        return {"g": self.width}

    @property
    def keep(self) -> dict[str, np.ndarray]:
        return {"g": np.arange(self.width)}

    @property
    def merit(self) -> float:
        return self.importance

    @property
    def importance(self) -> float:
        return self.width / 1000


@dataclass(frozen=True)
class Model:
    """Predicts `scale` ms per channel."""

    scale: float

    def calibrated(self, keep, measured_ms: float, profile=None) -> Model:
        return Model(measured_ms / len(keep["g"]))


@dataclass
class Machine:
    """Takes `scale` ms per channel and `fixed` ms, and remembers what it was asked."""

    scale: float
    fixed: float = 0.0
    goal: Goal = field(default_factory=lambda: Goal(Budget(latency=5.0), 10.0))
    uncertainty: float = 1.0
    asked: list[int] = field(default_factory=list)

    def measure(self, plan: Plan) -> Trial:
        self.asked.append(plan.width)
        ms = self.scale * plan.width + self.fixed
        limit = self.goal.requested
        return Trial(Assessment(ms, ms, ms, ms * self.uncertainty, ms * self.uncertainty / limit, ms / limit))


def solve(model: Model, budget_ms: float) -> Plan:
    width = int(budget_ms / model.scale)
    if width < 1:
        raise BudgetError("nothing fits")
    return Plan(min(width, 1000), min(width, 1000) * model.scale)


@pytest.mark.parametrize("wrong_by", [0.5, 0.8, 1.0, 1.3, 3.0])
@pytest.mark.parametrize("fixed", [0.0, 1.0])
def test_however_wrong_the_first_prediction_the_budget_is_met_and_used(wrong_by, fixed):
    machine = Machine(0.01, fixed)
    outcome = close_loop(machine.goal, Model(0.01 * wrong_by), solve=solve, measure=machine.measure)
    ms = 0.01 * outcome.solution.width + fixed
    assert 5 * 0.93 <= ms <= 5
    assert len(outcome.rounds) == len(machine.asked) <= 6


def test_a_right_prediction_takes_one_round():
    machine = Machine(0.01)
    outcome = close_loop(machine.goal, Model(0.01), solve=solve, measure=machine.measure)
    assert machine.asked == [int(5 * (1 - RESERVE) / 0.01)]
    assert outcome.rounds[0].met


@dataclass(frozen=True)
class Stubborn(Model):
    """Predicts the same whatever was measured."""

    def calibrated(self, keep, measured_ms: float, profile=None) -> Stubborn:
        return self


def in_hundreds(model: Model, budget_ms: float) -> Plan:
    width = 100 * int(budget_ms / model.scale / 100)
    return Plan(width, width * model.scale)


def test_more_is_asked_for_where_a_plan_comes_up_again_that_leaves_much_unused():
    """5 ms less the reserve are 394 channels of a prediction that is a quarter too slow, with 3 % more 405."""
    machine = Machine(0.01)
    outcome = close_loop(machine.goal, Stubborn(0.0125), solve=in_hundreds, measure=machine.measure)
    assert machine.asked == [300, 400]
    assert outcome.solution.width == 400


def test_asking_for_more_ends_with_the_first_candidate_that_takes_too_long():
    """The same, where channels beyond 300 take three times as long."""
    asked: list[int] = []

    def measure(plan: Plan) -> Trial:
        asked.append(plan.width)
        ms = 0.01 * min(plan.width, 300) + 0.03 * max(0, plan.width - 300)
        return Trial(Assessment(ms, ms, ms, ms, ms / 5, ms / 5))

    goal = Goal(Budget(latency=5.0), 10.0)
    outcome = close_loop(goal, Stubborn(0.0125), solve=in_hundreds, measure=measure)
    assert asked == [300, 400]
    assert outcome.solution.width == 300


def test_the_end_of_the_interval_has_to_keep_the_budget():
    machine = Machine(0.01, uncertainty=1.1)
    outcome = close_loop(machine.goal, Model(0.01), solve=solve, measure=machine.measure)
    assert not outcome.rounds[0].met
    assert outcome.rounds[0].measured_ms < 5 < outcome.rounds[0].bound
    assert 0.01 * outcome.solution.width * 1.1 <= 5


def test_where_no_interval_keeps_the_budget_the_candidate_that_is_closest_goes_on():
    """2 ms are fixed, and intervals end at three times the time, 6 ms: the last, longer measurement has to tell."""
    machine = Machine(0.01, fixed=2.0, uncertainty=3.0)
    outcome = close_loop(machine.goal, Model(0.01), solve=solve, measure=machine.measure)
    assert not any(line.met for line in outcome.rounds)
    assert outcome.line.bound == min(line.bound for line in outcome.rounds) > 5 > outcome.line.measured


def test_a_machine_on_which_nothing_helps_is_said():
    machine = Machine(0.0, fixed=6.0)
    with pytest.raises(BudgetError, match=r"--latency 5ms was not met in (1 round|\d+ rounds); .* 6 ms"):
        close_loop(machine.goal, Model(0.01), solve=solve, measure=machine.measure)


def test_a_budget_below_every_prediction_is_refused_before_anything_is_measured():
    machine = Machine(0.01)
    with pytest.raises(BudgetError, match="nothing fits"):
        close_loop(machine.goal, Model(100.0), solve=solve, measure=machine.measure)
    assert machine.asked == []


def test_rounds_are_reported_as_they_end():
    seen: list[Round] = []
    machine = Machine(0.01)
    close_loop(machine.goal, Model(0.02), solve=solve, measure=machine.measure, on_round=seen.append)
    assert [line.widths["g"] for line in seen] == machine.asked
    assert seen[0].predicted_ms == pytest.approx(0.02 * machine.asked[0])
    assert seen[0].measured_ms == pytest.approx(0.01 * machine.asked[0])


# ---------------------------------------------------------------------- goal


def test_a_latency_is_judged_by_its_upper_bound_and_a_speedup_by_its_lower():
    dense, fast = timing(10, noise=0.05), timing(4, noise=0.05)
    latency = Goal.of(Budget(latency="5ms"), dense).assess(fast, dense)
    assert latency.met
    assert latency.measured < latency.bound < 5
    speedup = Goal.of(Budget(speedup=2), dense).assess(fast, dense)
    assert speedup.met
    assert 2 < speedup.bound < speedup.measured
    assert not Goal.of(Budget(speedup=2.6), dense).assess(fast, dense).met


def test_a_quantile_asks_for_a_lower_median():
    dense = timing(10, noise=0.1)
    goal = Goal.of(Budget(latency="5ms@p95"), dense)
    tail = np.quantile(dense.samples_ns, 0.95) / np.median(dense.samples_ns)
    assert goal.median_ms == pytest.approx(5 / tail)
    assert goal.assess(timing(4.8, noise=0.1), dense).met is False
    assert Goal.of(Budget(latency="5ms"), dense).assess(timing(4.8, noise=0.1), dense).met


def test_a_machine_that_became_slower_changes_no_ratio():
    goal = Goal.of(Budget(speedup=2), timing(10))
    found = goal.assess(timing(7), timing(14))
    assert (found.median_ms, found.model_ms, found.measured) == pytest.approx((7, 5, 2))


def test_the_median_for_a_speedup_follows_from_the_dense_model():
    assert Goal.of(Budget(speedup=4), timing(10)).median_ms == pytest.approx(2.5)


# ---------------------------------------------------------------------- choice


def quality(accuracy: float | None) -> Quality:
    return Quality(accuracy, 1.0, "top-1", 100)


def test_the_fastest_setting_that_keeps_the_accuracy_is_chosen():
    timings = [timing(10), timing(3, precision="int8"), timing(2, precision="int8", runtime="onnxruntime")]
    kept = choose_setting(timings, [quality(90), quality(89.5), quality(80)], drop=1.0)
    assert kept.setting == Setting("openvino", "int8", 1)
    assert "loses 10.0 points" in kept.remark
    careless = choose_setting(timings, [quality(90), quality(89.5), quality(80)], drop=20)
    assert careless.setting.runtime == "onnxruntime"


def test_without_labels_the_fastest_setting_is_chosen():
    timings = [timing(10), timing(3, precision="int8")]
    assert choose_setting(timings, [None, None], drop=1.0).setting.precision == "int8"


def test_without_labels_int8_has_to_agree_with_the_dense_model():
    timings = [timing(10), timing(3, precision="int8")]
    for kind, agreement, precision in (
        ("top-1", 0.11, "fp32"),
        ("relative error", -14.0, "fp32"),
        ("top-1", 0.995, "int8"),
    ):
        judged = [Quality(None, 1.0, kind, 300), Quality(None, agreement, kind, 300)]
        assert choose_setting(timings, judged, drop=1.0).setting.precision == precision
    judged = [Quality(None, 1.0, "top-1", 300), Quality(None, 0.11, "top-1", 300)]
    assert (
        "disagrees with the dense fp32 model by 89.0 points (top-1)" in choose_setting(timings, judged, drop=1).remark
    )


def test_where_nothing_keeps_the_quality_the_least_bad_is_chosen_and_said():
    timings = [timing(3, precision="int8"), timing(2, precision="int8", runtime="onnxruntime")]
    found = choose_setting(timings, [Quality(None, 0.6, "top-1", 9), Quality(None, 0.5, "top-1", 9)], drop=1)
    assert found.setting.runtime == "openvino"
    assert "disagrees" in found.remark


def test_an_error_of_the_users_is_lost_when_it_grows():
    error = Metric("wer", unit="", points=None, higher_is_better=False)
    judged = [Quality(value, 1.0, "top-1", 9, error) for value in (0.10, 0.12)]
    found = choose_setting([timing(10), timing(3, precision="int8")], judged, drop=10)
    assert found.setting.precision == "fp32"
    assert "loses 20.0 points of wer" in found.remark


def test_nothing_to_choose_from_is_an_error():
    with pytest.raises(InputError, match="no dense model could be measured"):
        choose_setting([], [], drop=1)


# ---------------------------------------------------------------------- certificate


def test_the_certificate_is_about_the_pruned_artifact_of_the_setting():
    timings = [
        timing(10),
        timing(4, pattern="channel", noise=0.02),
        timing(3, precision="int8"),
        timing(1, precision="int8", pattern="channel"),
    ]
    goal = Goal(Budget(latency=5.0), 10.0)
    found = certify(goal, Setting("openvino", "fp32"), run_of(*timings))
    assert (found.artifact, found.met) == ("pruned fp32 on openvino", True)
    assert found.measured == pytest.approx(4, rel=0.02)
    missed = certify(Goal(Budget(speedup=4), 3.0), Setting("openvino", "int8"), run_of(*timings))
    assert missed.met is False
    assert missed.bound == pytest.approx(3)


def run_of(*timings, floor=0.01, waited=0.0):
    """One run of them, and of a twin of the first, in which workers waited this share of the time for a core."""
    window = Window(seconds=1.0, others_cores=0.0, stolen=0.0, waited=waited, mhz=None)
    return Measured(timings, timings[0], floor, settled=True, conditions=Conditions((window,), cores=2, threads=1))


def test_a_busy_machine_certifies_a_latency_with_a_margin_larger_than_its_noise():
    """4 ms, 25 % more by the floor: 5 ms. Others make calls longer, never shorter."""
    busy = run_of(timing(10), timing(4, pattern="channel"), floor=0.25, waited=0.1)
    kept = certify(Goal(Budget(latency=5.01), 10.0), Setting("openvino", "fp32"), busy)
    assert (kept.met, kept.measured) == (True, pytest.approx(4))
    assert kept.bound == pytest.approx(5)
    assert "waited 10 % of the time for a core, so its interval was widened by 1.25x" in kept.doubt
    unsure = certify(Goal(Budget(latency=4.99), 10.0), Setting("openvino", "fp32"), busy)
    assert (unsure.met, unsure.bound, unsure.measured) == (None, None, pytest.approx(4))
    assert unsure.doubt.endswith("waited 10 % of the time for a core, and the margin is no larger than that")


def test_a_busy_machine_certifies_a_speed_up_as_if_only_the_dense_model_had_been_disturbed():
    """10 + 5 + 10 ms of a round are 2.5 times those of the dense model: it may have lost 2.5 x 8 % = 20 % of its time
    and take 8 ms, and 25 % more is what two workers of one file differ by: 10 / 5 x 0.8 / 1.25 = 1.28."""
    busy = run_of(timing(10), timing(5, pattern="channel"), floor=0.25, waited=0.08)
    assert widening(busy, busy.timings[0]) == pytest.approx(1.25 / 0.8)
    kept = certify(Goal(Budget(speedup=1.27), 10.0), Setting("openvino", "fp32"), busy)
    assert (kept.met, kept.bound) == (True, pytest.approx(1.28))
    assert certify(Goal(Budget(speedup=1.29), 10.0), Setting("openvino", "fp32"), busy).met is None
    hopeless = run_of(timing(10), timing(5, pattern="channel"), waited=0.4)
    assert widening(hopeless, hopeless.timings[0]) == math.inf
    assert certify(Goal(Budget(speedup=1.01), 10.0), Setting("openvino", "fp32"), hopeless).met is None


def test_an_artifact_that_could_not_be_measured_is_not_certified():
    found = certify(Goal(Budget(latency=5.0), 10.0), Setting("openvino", "fp32"), run_of(timing(10)))
    assert (found.met, found.measured) == (None, None)
    assert found.doubt == "the pruned artifact could not be measured"


def test_a_search_survives_its_file():
    line = Round({"g": 8}, 0.5, 4.0, 4.1, 4.1, 4.2, True)
    found = SearchResult(Setting("openvino", "int8"), 10.0, 1.1, 0.5, 4.0, 4.1, (line,), "why", {"probes": 3})
    assert SearchResult.from_json(found.to_json()) == found
    with pytest.raises(InputError, match="damaged"):
        SearchResult.from_json({"setting": 3})
