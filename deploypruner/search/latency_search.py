"""A budget of time, met: choose the setting, see what can be reached, time the layers, close the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil, floor
from typing import Any

from deploypruner.channels.feasible_widths import Room, by_importance, find_room
from deploypruner.errors import BudgetError
from deploypruner.latency import LatencyModel, LayerTime, Profile
from deploypruner.measure import DECIDING_SECONDS, median_ms
from deploypruner.recipe.budget import Budget
from deploypruner.search.bench import CandidateBench
from deploypruner.search.bottlenecks import obstacles
from deploypruner.search.candidates import Candidates, Look
from deploypruner.search.choose import ChosenSetting, choose_setting
from deploypruner.search.contenders import close_contenders
from deploypruner.search.final import judge_final
from deploypruner.search.found import SearchResult
from deploypruner.search.goal import Goal
from deploypruner.search.judge import Judge
from deploypruner.search.loop import Keep, Round, Trial
from deploypruner.search.mixed_setting import with_mix
from deploypruner.search.request import SearchRequest
from deploypruner.search.selection import choose_objective
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Part of the time that is left which timing layers may take.
_TABLE_SHARE = 0.5


class OutOfReach(BudgetError):
    """A budget of time that not even the narrowest widths keep.

    Args:
        message: As of every error.
        hint: As of every error.
        numbers: What can be reached, as JSON values.
    """

    def __init__(self, message: str, *, hint: str, numbers: dict[str, Any]) -> None:
        super().__init__(message, hint=hint)
        self.numbers = numbers


def meet(request: SearchRequest) -> tuple[Keep, SearchResult]:
    """Find the plan that keeps the most importance within the budget, by measurement.

    Returns:
        Group id -> kept channels, and how it was found. Everything is kept where the dense model is fast enough.

    Raises:
        OutOfReach: Not even the narrowest widths keep the budget; found out before any layer is timed.
        BudgetError: No candidate kept it.
        MeasureError: Nothing could be measured, or not exported.
    """
    graph, budget = request.graph, request.budget
    limit = TimeLimit(request.minutes, request.clock.monotonic)
    choice = _choose(request)
    goal = Goal.of(budget, choice.timing)
    found = SearchResult(choice.setting, goal.dense_ms, goal.tail, remark=choice.remark, gave_up=choice.gave_up)
    request.say(f"{choice.remark}: {goal.dense_ms:.3g} ms")
    if not budget.fastest and goal.assess(choice.timing, choice.timing).met:
        whole = f"the dense model keeps {budget} already, so nothing is cut"
        return {}, replace(
            found, predicted_ms=goal.dense_ms, measured_ms=goal.dense_ms, remark=f"{choice.remark}; {whole}"
        )
    with CandidateBench(
        graph, choice.setting, choice.timing.artifact, feeds=request.feeds, seed=request.seed, clock=request.clock
    ) as bench:
        room = narrowest(request)
        trial = bench.trial(room.narrowest, goal)
        request.say(f"narrowest widths: {trial.assessment.median_ms:.3g} ms")
        if trial.assessment.excess > 1:
            raise _out_of_reach(request, choice, trial, room)
        model = _latency_model(request, choice, goal, limit)
        chosen = choose_objective(request, goal, model, bench, limit=limit, spent=choice.lost)
        closed = close_contenders(
            chosen, bench, limit=limit, say=request.say, on_round=lambda line: request.say(_text(line, budget))
        )
    goal, seen, outcome = chosen.goal, chosen.seen, closed.outcome
    solution = outcome.solution
    judged, judge = None, chosen.judge
    if judge is not None:
        judged = judge_final(request, judge, outcome, objective=closed.objective, limit=limit, seen=seen)
        _look_at(closed.tried, judge, seen, limit)
    if limit.remark:
        request.say(f"remark: {limit.remark}")
    return solution.keep, replace(
        found,
        objective=closed.objective.name,
        pool=() if chosen.selection is None else chosen.selection.entries,
        judged_by="" if chosen.selection is None else chosen.selection.kind,
        judged=judged,
        cut=limit.remark,
        importance=solution.importance,
        predicted_ms=solution.predicted_ms,
        measured_ms=outcome.line.measured_ms,
        rounds=outcome.rounds,
        table=model.facts,
        pace=str(goal.budget.latency) if budget.fastest else "",
        paces=request.paces,
        candidates=seen.all(),
    )


def _look_at(tried: Sequence[tuple[str, Solution]], judge: Judge, seen: Candidates, limit: TimeLimit) -> None:
    """How the measured plans do that nobody has looked at, as long as there is time for it."""
    seconds = 0.0
    for by, solution in tried:
        if not seen.looked(solution) and limit.allows(seconds):
            begun = limit.spent
            seen.add(by, solution, look=Look.of(judge.look(solution.keep), judge.dense))
            seconds = limit.spent - begun


def _latency_model(request: SearchRequest, choice: ChosenSetting, goal: Goal, limit: TimeLimit) -> LatencyModel:
    """Of this machine as it is now; from fewer probes where little time is left."""
    seconds = min(request.table_seconds, max(0.0, _TABLE_SHARE * limit.left))
    model = request.clock.latency_model(
        request.graph,
        choice.setting,
        cache=request.cache,
        seconds=seconds,
        step=request.step,
        seed=request.seed,
        progress=request.progress,
    )
    if seconds < request.table_seconds and model.facts["remarks"]:  # not where all times were known
        limit.cut(f"{seconds:.0f} s for timing layers instead of {request.table_seconds:.0f}")
    for remark in model.facts["remarks"]:
        request.say(f"remark: {remark}")
    # The table is of an undisturbed machine, the goal of the machine as it is.
    return model.calibrated({}, goal.dense_ms)


def narrowest(request: SearchRequest) -> Room:
    """How far every group may be cut, and what it keeps then."""
    graph = request.graph
    room, _ = find_room(
        graph,
        by_importance(request.scores),
        request.constraints,
        step=request.step,
        cost=lambda room: float(graph.costs.macs(graph.removed(room.narrowest))),
        depth=True,
    )
    return room


def _choose(request: SearchRequest) -> ChosenSetting:
    measured = request.clock.artifacts(
        request.jobs, threads=request.threads, budget_s=DECIDING_SECONDS, seed=request.seed, feeds=request.feeds
    )
    medians = sorted((median_ms(t.samples_ns), f"{t.artifact.precision} on {t.runtime}") for t in measured.timings)
    request.say(f"the dense model: {', '.join(f'{ms:.3g} ms {name}' for ms, name in medians)}")
    jobs = [(timing.artifact, timing.runtime) for timing in measured.timings]
    # Of one job nothing is asked, but for int8: a mix may keep what it loses.
    choices = len(jobs) > 1 or (request.mixed is not None and jobs[0][0].precision == "int8")
    ask = request.qualities if choices else None
    qualities = [None] * len(jobs) if ask is None else ask(jobs)
    return with_mix(request, choose_setting(measured.timings, qualities, drop=request.accuracy_drop))


def _out_of_reach(request: SearchRequest, choice: ChosenSetting, trial: Trial, room: Room) -> OutOfReach:
    """Say how fast the narrowest plan is, and what its time goes into."""
    budget, least = request.budget, trial.assessment
    dense = request.clock.profile(choice.timing.artifact.path, choice.setting, feeds=request.feeds)
    reasons = obstacles(request.graph, room.limits, _layers(trial.profile), _layers(dense))
    because = f"; what stands in the way: {'; '.join(reasons)}" if reasons else ""
    if budget.speedup is not None:
        reached, offer = f"{least.measured:.2f}x", f"--speedup {floor(100 * least.bound) / 100:g}"
    else:
        reached, offer = f"{least.measured:.3g} ms", f"--latency {ceil(100 * least.bound) / 100:g}ms"
    dense_ms = Goal.of(budget, choice.timing).dense_ms
    return OutOfReach(
        f"{budget} is out of reach: at its narrowest widths{_shallowest(room)} the model reaches {reached} as "
        f"{choice.setting} ({least.median_ms:.3g} ms against {dense_ms:.3g} ms dense){because}",
        hint=f"about {offer} can be reached; {_further(request, room)} may reach further",
        numbers={
            "kind": budget.kind,
            "requested": Goal.of(budget, choice.timing).requested,
            "reachable": least.measured,
            "reachable_ms": least.median_ms,
            "dense_ms": dense_ms,
            "setting": str(choice.setting),
            "step": request.step,
            "obstacles": reasons,
        },
    )


def _shallowest(room: Room) -> str:
    """What is gone beside widths, "" where nothing is."""
    gone = sum(not why for why in room.held.values())
    return f" and without {gone} residual branch{'' if gone == 1 else 'es'}" if gone else ""


def _further(request: SearchRequest, room: Room) -> str:
    """What may reach further, as the command line calls it."""
    held = sum(bool(why) for why in room.held.values())
    depth = (
        f"--depth auto, which may leave out {held} residual branches, or "
        if request.constraints.depth == "keep"
        else ""
    )
    return f"{depth if held else ''}a larger --max-cut or a smaller --step"


def _layers(found: Profile) -> list[LayerTime]:
    return [LayerTime(node.name, node.kind, node.ns / 1e6) for node in found.nodes]


def _text(line: Round, budget: Budget) -> str:
    unit = "x" if budget.speedup is not None else " ms"
    return (
        f"candidate: predicted {line.predicted_ms:.3g} ms, measured {line.measured_ms:.3g} ms "
        f"({line.bound:.3g}{unit} at the end of its interval), {'within' if line.met else 'not within'} the budget; "
        f"importance by the criterion {100 * line.importance:.1f} %"
    )
