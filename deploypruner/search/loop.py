"""The closed loop: solve for the predicted latency, export, measure, correct the prediction, and solve again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import BudgetError
from deploypruner.search.goal import Assessment, Goal

Keep = Mapping[str, NDArray[np.int64]]

# Two runs minutes apart differ by this much on a quiet machine; what only just meets a budget would miss it tomorrow.
RESERVE = 0.015
# A candidate that leaves more of the budget than this unused is worth another round.
SLACK = 0.04
ROUNDS = 6
# Where a plan comes up again that leaves more, each further round asks for this much more, so often at most.
_ADVANCE = 1.03
_ADVANCES = 4
# After that, each further round asks for this much less, until one keeps the budget.
_RETREAT = 0.96
_RETREATS = 6


class Predicting(Protocol):
    """The part of a latency model the loop uses."""

    def calibrated(self, keep: Keep, measured_ms: float, profile: Any = None) -> Self:
        """The model after a candidate was measured."""


class Solved(Protocol):
    """The part of a solution the loop uses."""

    @property
    def widths(self) -> Mapping[str, int]:
        """Group id -> width."""

    @property
    def keep(self) -> Keep:
        """Group id -> kept channels."""

    @property
    def predicted_ms(self) -> float:
        """By the model it was solved with."""

    @property
    def importance(self) -> float:
        """Share of the importance that stays."""

    @property
    def merit(self) -> float:
        """What it was solved for; larger is better."""


@dataclass(frozen=True)
class Trial:
    """A candidate's measurement.

    Args:
        assessment: Against the goal.
        profile: Times of its layers, for `LatencyModel.calibrated`; None where the runtime does not say.
        doubt: Why the numbers certify nothing (the machine was busy), "" where they do.
    """

    assessment: Assessment
    profile: Any = None
    doubt: str = ""


@dataclass(frozen=True)
class Round:
    """One line of `loop[]` in report.json.

    Args:
        widths: Group id -> width.
        importance: Share of the importance that stays.
        predicted_ms: Median, before the round.
        measured_ms: Median; for a speed-up, as it would have been when the dense model was timed for the goal.
        measured: In the unit of the budget.
        bound: End of the interval that has to keep the budget, in its unit.
        met: Does it?
    """

    widths: dict[str, int]
    importance: float
    predicted_ms: float
    measured_ms: float
    measured: float
    bound: float
    met: bool


_S = TypeVar("_S", bound=Solved)
_M = TypeVar("_M", bound=Predicting)


@dataclass(frozen=True)
class LoopOutcome:
    """What the loop ends with.

    Args:
        solution: The candidate of the greatest merit within the budget; where no interval lies within it, the one
            whose interval leaves it least, as long as what was measured is within.
        line: Its round.
        rounds: Everything that was tried.
        doubt: Why the measurement of the solution certifies nothing, "" where it does.
        model: Calibrated with every round but one that ended the loop.
        cut: Would another round have followed, had there been time?
    """

    solution: Any
    line: Round
    rounds: tuple[Round, ...]
    doubt: str
    model: Any
    cut: bool


def close_loop(
    goal: Goal,
    model: _M,
    *,
    solve: Callable[[_M, float], _S],
    measure: Callable[[_S], Trial],
    on_round: Callable[[Round], None] = lambda line: None,
    over: Callable[[], bool] = lambda: False,
) -> LoopOutcome:
    """Find the plan of the greatest merit that is measured within the goal.

    Each round solves for what the goal leaves after the reserve and the width of the last interval, measures the
    candidate, and calibrates the model with it. It ends when a candidate keeps the goal and leaves little of it
    unused, when the same candidates come up again although more is asked for, after `ROUNDS`, or when the time is
    over; from then on the aim retreats until a candidate keeps the goal.

    Args:
        goal: What to reach.
        model: Predicts milliseconds.
        solve: (model, milliseconds) -> the best plan predicted within them; raises BudgetError where there is none.
        measure: Exports and times a candidate.
        on_round: Told about every round.
        over: Is the time over? Asked after every round.

    Raises:
        BudgetError: No candidate was measured within the goal, not even without regard to the uncertainty.
    """
    rounds: list[Round] = []
    best: tuple[_S, Trial] | None = None
    nearly: tuple[_S, Trial] | None = None
    seen: set[tuple[int, ...]] = set()
    doubt_share, retreat, advances, cut = 1.0, 1.0, 0, False
    for number in range(ROUNDS + _RETREATS):
        late = number > 0 and over()
        if number >= ROUNDS or late:
            if best is not None:
                cut = number < ROUNDS
                break
            retreat *= _RETREAT
        try:
            aim = goal.median_ms * (1 - RESERVE) * doubt_share * retreat * _ADVANCE**advances
            solution = solve(model, aim)
        except BudgetError:
            if best is None and number == 0:
                raise
            break
        key = tuple(solution.widths.values())
        if key in seen:
            if best is None:
                retreat *= _RETREAT
                continue
            if advances == _ADVANCES or best[1].assessment.strain >= 1 - SLACK:
                break
            advances += 1
            continue
        seen.add(key)
        trial = measure(solution)
        rounds.append(_line(solution, trial.assessment))
        on_round(rounds[-1])
        if trial.assessment.met and (best is None or solution.merit > best[0].merit):
            best = solution, trial
        if trial.assessment.excess <= 1 and (nearly is None or trial.assessment.strain < nearly[1].assessment.strain):
            nearly = solution, trial
        if trial.assessment.met and trial.assessment.strain >= 1 - SLACK:
            break
        if advances and not trial.assessment.met:
            break  # what was asked for beyond the prediction is too much
        doubt_share = min(1.0, trial.assessment.excess / trial.assessment.strain)
        model = model.calibrated(solution.keep, trial.assessment.model_ms, trial.profile)
    best = best or nearly  # the last measurement, which is longer, has to tell
    if best is None:
        closest = min(rounds, key=lambda line: line.measured_ms)
        raise BudgetError(
            f"{goal.budget} was not met in {len(rounds)} round{'s' if len(rounds) > 1 else ''}; "
            f"the fastest candidate has a median of {closest.measured_ms:.3g} ms",
            hint="measure on a quieter machine, or ask for a little more time",
        )
    return LoopOutcome(best[0], _line(best[0], best[1].assessment), tuple(rounds), best[1].doubt, model, cut)


def _line(solution: Solved, found: Assessment) -> Round:
    return Round(
        widths=dict(solution.widths),
        importance=solution.importance,
        predicted_ms=solution.predicted_ms,
        measured_ms=found.model_ms,
        measured=found.measured,
        bound=found.bound,
        met=found.met,
    )
