"""The plan that the closed loop ends with, judged like those of the pool it came out of."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.latency import LatencyModel
from deploypruner.search.candidates import Candidates, Look
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.loop import LoopOutcome
from deploypruner.search.objectives import Objective
from deploypruner.search.request import SearchRequest
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Plans that are judged to find the fastest one that keeps the quality.
_KEEPING_LOOKS = 4
# Part of the images for that: the answer is to a few percent anyway.
_KEEPING_SHARE = 0.5


@dataclass(frozen=True)
class JudgedPlan:
    """What became of the plan before any training.

    Args:
        verdict: On the plan, after reconstruction.
        dense: On the dense model, from the same images.
        allowed: Points, of the task's metric or of top-1, that may be lost because nothing will be trained after
            this; None where it will.
        keeps: Predicted milliseconds of the fastest plan that was found to lose no more than that, where this one
            loses more; None where this one does not, or no plan was found.
    """

    verdict: Verdict
    dense: Verdict
    allowed: float | None = None
    keeps: float | None = None

    @property
    def accepted(self) -> bool:
        """Does it lose no more than allowed? Also where nothing is known."""
        return not _loses(self.dense, self.verdict, self.allowed)

    def to_json(self) -> dict[str, Any]:
        """As report.json has it under `budget.judged`."""
        verdicts = {"verdict": self.verdict.to_json(), "dense": self.dense.to_json()}
        return {**asdict(self), **verdicts, "accepted": self.accepted}


def judge_final(
    request: SearchRequest,
    judge: Judge,
    outcome: LoopOutcome,
    *,
    objective: Objective,
    limit: TimeLimit,
    seen: Candidates,
) -> JudgedPlan:
    """Look at the plan, and where it loses too much without training, for the fastest that does not.

    Args:
        request: The search.
        judge: Of the pool; a plan that it has seen costs nothing.
        outcome: What the closed loop ended with.
        objective: What it was solved for.
        limit: Time that is left for looking at other plans.
        seen: Every plan that is looked at is added here.
    """
    plan: Solution = outcome.solution
    verdict = judge.look(plan.keep)
    seen.add(objective.name, plan, look=Look.of(verdict, judge.dense))
    judged = JudgedPlan(verdict, judge.dense, request.keeping)
    request.say(f"the plan: {_text(verdict)} before training; the dense model: {_text(judge.dense)}")
    if judged.accepted:
        return judged
    keeps = _fastest_keeping(request, judge, objective, model=outcome.model, plan=plan, limit=limit, seen=seen)
    reached = "no plan that was looked at keeps it" if keeps is None else f"{keeps:.3g} ms are predicted to keep it"
    request.say(f"without training this loses more than {request.keeping:g} points; {reached}")
    return JudgedPlan(verdict, judge.dense, request.keeping, keeps)


def _fastest_keeping(
    request: SearchRequest,
    judge: Judge,
    objective: Objective,
    *,
    model: LatencyModel,
    plan: Solution,
    limit: TimeLimit,
    seen: Candidates,
) -> float | None:
    """Predicted milliseconds of the fastest plan by this objective that keeps enough, to a few percent.

    Both sides are judged on the same part of the images.
    """
    low, high = plan.predicted_ms, plan.dense_ms
    best, dense, seconds = None, judge.dense_on(_KEEPING_SHARE), 0.0
    for number in range(_KEEPING_LOOKS):
        if not limit.allows(seconds):
            limit.cut(f"{number} of {_KEEPING_LOOKS} looks for a plan that keeps the accuracy")
            break
        begun, middle = limit.spent, (low * high) ** 0.5
        solution = objective.solve(model.tally, middle)
        verdict = judge.look(solution.keep, share=_KEEPING_SHARE)
        seen.add(objective.name, solution, look=Look.of(verdict, dense))
        if _loses(dense, verdict, request.keeping):
            low = middle
        else:
            high, best = middle, solution.predicted_ms
        seconds = limit.spent - begun
    return best


def _loses(dense: Verdict, found: Verdict, allowed: float | None) -> bool:
    """Is more lost than allowed? Not where nothing is known, and always where it is not a number."""
    if allowed is not None and found.gap is not None:
        return not found.gap.lost <= allowed
    return (
        allowed is not None
        and dense.top1 is not None
        and found.top1 is not None
        and (dense.top1 - found.top1 > allowed)
    )


def _text(verdict: Verdict) -> str:
    text = f"{verdict.kind} {verdict.loss:.3g}" + ("" if verdict.top1 is None else f", top-1 {verdict.top1:.1f} %")
    gap = verdict.gap
    if gap is None or verdict.top1 is not None:
        return text
    return f"{text}, {gap.output and gap.output + ' '}{gap.kind} {gap.found:.4g}{gap.unit and ' ' + gap.unit}"
