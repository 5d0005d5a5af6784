"""Plans of equal predicted time brought to the same measured time, each with a prediction corrected for its kind.

Plans of one kind (blocks gone and the rest wide, everything narrow) are predicted wrongly to the same side, by 10 %
and more where layers are small. One that is slower than predicted would be taken for better than it is, and what
another one leaves of its time would be lost to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from deploypruner.errors import BudgetError
from deploypruner.latency import LatencyModel
from deploypruner.search.loop import SLACK, Keep, Trial
from deploypruner.search.objectives import Objective, base_name
from deploypruner.search.proposed import Measurements, Proposed
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# What a plan may take beyond its time before it is solved again, and how often one is measured.
_OVER = 1.01
_MEASURED = 3
# Part of the time that is left which measuring plans may take: they are still to be judged.
_SHARE = 0.3


@dataclass
class EqualTime:
    """Measures plans, and solves those that are off their time again.

    Args:
        target_ms: What plans are solved for.
        model: Predicts; it learns from the operations of every plan that is measured.
        measure: Exports and times a plan.
        file: The plan that came of it is kept here, so that an interrupted search does not measure again.
        limit: No measurement begins that would end after its part of it.
        seen: Told about every plan that was measured: (objective, plan, milliseconds).
    """

    target_ms: float
    model: LatencyModel
    measure: Callable[[Solution], Trial]
    file: Proposed
    limit: TimeLimit
    seen: Callable[[Objective, Solution, float], None] = lambda objective, plan, ms: None
    _measured: dict[str, tuple[Keep, float]] = field(default_factory=dict)
    _until: float | None = None
    _longest: float = 0.0
    _cut: bool = False

    def model_of(self, objective: Objective) -> LatencyModel:
        """Right about the plan of this objective, or of the one it was refined from, that was measured last."""
        known = self._measured.get(base_name(objective.name))
        return self.model if known is None else self.model.calibrated(*known)

    def solve(self, objective: Objective) -> Solution:
        """The plan of an objective by what is known of its kind.

        Raises:
            BudgetError: It has none.
        """
        return self.file.solved(
            objective.name, lambda: objective.solve(self.model_of(objective).tally, self.target_ms)
        )

    def settle(self, objective: Objective, plan: Solution) -> Solution:
        """The plan of this objective that takes the time and leaves little of it, as measured.

        Args:
            objective: What is solved again where the plan does not.
            plan: Its plan by the prediction so far.

        Returns:
            Of what was measured, the plan that comes closest to the time from below, or the fastest where none keeps
            it; the plan as it is where there is no time to measure it.
        """
        known = self.file.measured(objective.name)
        if known is None:
            known = self._settled(objective, plan)
            self.file.add_measured(objective.name, *known)
        else:
            for earlier, ms in known[1]:
                self._note(objective, earlier, ms)
        return known[0]

    def _settled(self, objective: Objective, plan: Solution) -> tuple[Solution, Measurements]:
        """The plan, and what was measured for it."""
        best, closest, measured = plan, inf, Measurements()
        while len(measured) < _MEASURED:
            ms = self._ms(plan, objective)
            if ms is None:
                break
            measured.append((plan, ms))
            share = ms / self.target_ms
            if _distance(share) < closest:
                best, closest = plan, _distance(share)
            if 1 - SLACK <= share <= _OVER:
                break
            try:
                again = objective.solve(self.model_of(objective).tally, self.target_ms)
            except BudgetError:
                break
            if again.widths == plan.widths:
                break
            plan = again
        return best, measured

    def _ms(self, plan: Solution, objective: Objective) -> float | None:
        """What a plan takes when measured, which corrects the prediction; None where time is short."""
        begun = self.limit.spent
        if self._until is None:
            self._until = begun + _SHARE * max(0.0, self.limit.left)
        if not self.limit.allows() or begun + self._longest > self._until:
            if not self._cut:
                self.limit.cut("plans judged that were not all measured")
            self._cut = True
            return None
        trial = self.measure(plan)
        if trial.profile is not None:
            self.model = self.model.learned(plan.keep, trial.profile)
        self._note(objective, plan, trial.assessment.model_ms)
        self._longest = max(self._longest, self.limit.spent - begun)
        return trial.assessment.model_ms

    def _note(self, objective: Objective, plan: Solution, ms: float) -> None:
        self._measured[base_name(objective.name)] = plan.keep, ms
        self.seen(objective, plan, ms)


def _distance(share: float) -> float:
    """From the time, what is over it always farther than what is below."""
    return 1 - share if share <= _OVER else share
