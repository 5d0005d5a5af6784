"""The least time within a budget of accuracy, where no time was asked for: found by judging plans before training."""

from __future__ import annotations

from dataclasses import replace

from deploypruner.latency import LatencyModel
from deploypruner.recipe.budget import Budget
from deploypruner.search.candidates import Candidates, Look
from deploypruner.search.goal import Goal
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.loop import RESERVE
from deploypruner.search.objectives import Objective
from deploypruner.search.request import SearchRequest
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Halvings of the ratio between the fastest plan and the dense model; four times as fast is known to a tenth then.
_LOOKS = 5
# What a time that was found is longer than its plan is predicted to be, so that the loop has room to keep it.
_ROOM = 1.02


def find_pace(
    request: SearchRequest,
    goal: Goal,
    judge: Judge,
    objective: Objective,
    *,
    model: LatencyModel,
    spent: float,
    limit: TimeLimit,
    seen: Candidates,
) -> Goal:
    """The goal with the least time whose plan keeps the accuracy, repaired, and trained briefly where that follows.

    Every pass that lost too much in the end moves it half the way, in ratio, towards the dense model.

    Args:
        request: With the points that may be lost.
        goal: With a time that is to be found.
        judge: Of plans.
        objective: Plans are solved for.
        model: Predicts milliseconds.
        spent: Points that the precision alone costs.
        limit: No look begins that would end after it.
        seen: Every plan that is looked at is added here.
    """
    allowed = max(0.0, request.allowed - spent)
    if request.paces:
        ms = (request.paces[-1] * goal.dense_ms) ** 0.5
        request.say(f"{request.paces[-1]:.3g} ms lost too much in the end: {ms:.3g} ms is tried")
    else:
        ms = _least(request, judge, objective, model, allowed=allowed, limit=limit, seen=seen)
        request.say(
            f"{ms:.3g} ms is the least time whose plan loses no more than {allowed:.3g} points before the end "
            f"({request.allowed:g} allowed, {spent:.2g} for the precision alone)"
        )
    return replace(goal, budget=Budget(latency=f"{ms:.6g}ms"))


def _least(
    request: SearchRequest,
    judge: Judge,
    objective: Objective,
    model: LatencyModel,
    *,
    allowed: float,
    limit: TimeLimit,
    seen: Candidates,
) -> float:
    """Milliseconds, by bisection in the logarithm; the dense model's where no plan keeps the accuracy."""
    whole = objective.solve(model.tally, model.ms({}))
    low, high = whole.fastest_ms, whole.dense_ms
    seconds = 0.0
    for number in range(_LOOKS):
        if not limit.allows(seconds):
            limit.cut(f"{number} of {_LOOKS} looks for the least time")
            break
        begun, middle = limit.spent, (low * high) ** 0.5
        solution = objective.solve(model.tally, middle)
        verdict = _judged(request, judge, solution)
        look = Look.of(verdict, judge.dense)
        seen.add(objective.name, solution, look=look)
        low, high = (low, middle) if look.lost is not None and look.lost <= allowed else (middle, high)
        seconds = limit.spent - begun
    return high * _ROOM / (1 - RESERVE)


def _judged(request: SearchRequest, judge: Judge, solution: Solution) -> Verdict:
    return judge.look(solution.keep) if request.train is None else request.train(judge, solution.keep)
