"""A budget of time, met: choose the setting, see what can be reached, time the layers, close the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor
from pathlib import Path
from typing import Any

from torch import Tensor

from deploypruner.budget import Budget
from deploypruner.criteria import Normalizer
from deploypruner.errors import BudgetError
from deploypruner.graph import Graph
from deploypruner.latency import LatencyModel, LayerTime, Profile, build_latency_model, profile
from deploypruner.measure import Job, time_artifacts
from deploypruner.progress import Progress
from deploypruner.prune.constraints import Constraints
from deploypruner.prune.room import Room, by_importance, find_room
from deploypruner.records import Quality
from deploypruner.runtime import Array
from deploypruner.search.bench import Bench
from deploypruner.search.choose import Choice, choose_setting
from deploypruner.search.found import Found
from deploypruner.search.goal import Goal
from deploypruner.search.loop import Keep, Round, Trial, close_loop
from deploypruner.search.obstacles import obstacles
from deploypruner.search.solve import Solution, solve

_DENSE_SECONDS = 8.0


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


@dataclass(frozen=True)
class Request:
    """Everything the search needs to know.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        budget: Of kind "latency" or "speedup".
        jobs: The dense model in every precision and runtime that may be chosen.
        normalizer: Makes scores of different groups comparable.
        step: Widths become multiples of this.
        constraints: What may be cut, and how far.
        threads: Of every runtime.
        accuracy_drop: Points int8 may cost, see `choose_setting`.
        qualities: Of `jobs`; only asked for where there is more than one.
        feeds: One array per input, None for random ones.
        table_seconds: For timing layers.
        cache: Folder of the latency tables, None for the user's cache folder.
        seed: Decides every random choice.
        progress: Told about the layers' timing.
        say: Called with a line for each step.
    """

    graph: Graph
    scores: Mapping[str, Tensor]
    budget: Budget
    jobs: Sequence[Job]
    normalizer: Normalizer = "none"
    step: int = 8
    constraints: Constraints = field(default_factory=Constraints)
    threads: int = 1
    accuracy_drop: float = 1.0
    qualities: Callable[[Sequence[Job]], Sequence[Quality | None]] | None = None
    feeds: Sequence[Array] | None = None
    table_seconds: float = 120.0
    cache: Path | None = None
    seed: int = 0
    progress: Progress | None = None
    say: Callable[[str], None] = lambda line: None


def meet(request: Request) -> tuple[Keep, Found]:
    """Find the plan that keeps the most importance within the budget, by measurement.

    Returns:
        Group id -> kept channels, and how it was found. Everything is kept where the dense model is fast enough.

    Raises:
        OutOfReach: Not even the narrowest widths keep the budget; found out before any layer is timed.
        BudgetError: No candidate kept it.
        MeasureError: Nothing could be measured, or not exported.
    """
    graph, budget = request.graph, request.budget
    choice = _choose(request)
    goal = Goal.of(budget, choice.timing)
    found = Found(choice.setting, goal.dense_ms, goal.tail, remark=choice.remark)
    request.say(f"{choice.remark}: {goal.dense_ms:.3g} ms")
    if goal.assess(choice.timing, choice.timing).met:
        whole = f"the dense model keeps {budget} already, so nothing is cut"
        return {}, replace(
            found, predicted_ms=goal.dense_ms, measured_ms=goal.dense_ms, remark=f"{choice.remark}; {whole}"
        )
    with Bench(graph, choice.setting, choice.timing.artifact, feeds=request.feeds, seed=request.seed) as bench:
        room = narrowest(request)
        trial = bench.trial(room.narrowest, goal)
        request.say(f"narrowest widths: {trial.assessment.median_ms:.3g} ms")
        if trial.assessment.excess > 1:
            raise _out_of_reach(request, choice, trial, room)
        model = build_latency_model(
            graph,
            choice.setting,
            cache=request.cache,
            seconds=request.table_seconds,
            step=request.step,
            seed=request.seed,
            progress=request.progress,
        )
        outcome = close_loop(
            goal,
            model,
            solve=lambda model, ms: _solve(request, model, ms),
            measure=lambda solution: bench.trial(solution.keep, goal),
            on_round=lambda line: request.say(_text(line, budget)),
        )
    solution = outcome.solution
    return solution.keep, replace(
        found,
        importance=solution.importance,
        predicted_ms=solution.predicted_ms,
        measured_ms=outcome.line.measured_ms,
        rounds=outcome.rounds,
        table=model.facts,
    )


def narrowest(request: Request) -> Room:
    """How far every group may be cut, and what it keeps then."""
    graph = request.graph
    room, _ = find_room(
        graph,
        by_importance(request.scores),
        request.constraints,
        step=request.step,
        cost=lambda room: float(graph.costs.macs(graph.removed(room.narrowest))),
    )
    return room


def _choose(request: Request) -> Choice:
    measured = time_artifacts(
        request.jobs, threads=request.threads, budget_s=_DENSE_SECONDS, seed=request.seed, feeds=request.feeds
    )
    jobs = [(timing.artifact, timing.runtime) for timing in measured.timings]
    ask = request.qualities if len(jobs) > 1 else None
    qualities = [None] * len(jobs) if ask is None else ask(jobs)
    return choose_setting(measured.timings, qualities, drop=request.accuracy_drop)


def _solve(request: Request, model: LatencyModel, budget_ms: float) -> Solution:
    return solve(
        request.graph,
        request.scores,
        model.tally,
        budget_ms,
        normalizer=request.normalizer,
        step=request.step,
        constraints=request.constraints,
        seed=request.seed,
    )


def _out_of_reach(request: Request, choice: Choice, trial: Trial, room: Room) -> OutOfReach:
    """Say how fast the narrowest plan is, and what its time goes into."""
    budget, least = request.budget, trial.assessment
    dense = profile(choice.timing.artifact.path, choice.setting, feeds=request.feeds)
    reasons = obstacles(request.graph, room.limits, _layers(trial.profile), _layers(dense))
    because = f"; what stands in the way: {'; '.join(reasons)}" if reasons else ""
    if budget.speedup is not None:
        reached, offer = f"{least.measured:.2f}x", f"--speedup {floor(100 * least.bound) / 100:g}"
    else:
        reached, offer = f"{least.measured:.3g} ms", f"--latency {ceil(100 * least.bound) / 100:g}ms"
    dense_ms = Goal.of(budget, choice.timing).dense_ms
    return OutOfReach(
        f"{budget} is out of reach: at its narrowest widths the model reaches {reached} as {choice.setting} "
        f"({least.median_ms:.3g} ms against {dense_ms:.3g} ms dense){because}",
        hint=f"about {offer} can be reached; a larger --max-cut or a smaller --step may reach further",
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


def _layers(found: Profile) -> list[LayerTime]:
    return [LayerTime(node.name, node.kind, node.ns / 1e6) for node in found.nodes]


def _text(line: Round, budget: Budget) -> str:
    unit = "x" if budget.speedup is not None else " ms"
    return (
        f"candidate: predicted {line.predicted_ms:.3g} ms, measured {line.measured_ms:.3g} ms"
        f" ({line.bound:.3g}{unit} at the end of its interval), keeps {line.importance:.1%} of the importance, "
        f"{'met' if line.met else 'not met'}"
    )
