"""A budget of time, met: choose the setting, see what can be reached, time the layers, close the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
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
from deploypruner.search.judge import Judge
from deploypruner.search.loop import RESERVE, Keep, Round, Trial, close_loop
from deploypruner.search.losses import Losses
from deploypruner.search.objectives import Objective, Space, objectives, perturbed, proposals
from deploypruner.search.obstacles import obstacles
from deploypruner.search.pool import Selection, select

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
        worth: Measures what widths and branches are worth, called once the budget is in reach; None without
            data.
        judge: Makes what judges plans before training, called like `worth`; None without data.
        plans: Size of the pool that is judged.
        minutes: When these are over, no further plan is looked at.
        seed: Decides every random choice.
        progress: Told about the layers' timing, and about plans that are judged.
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
    worth: Callable[[], Losses] | None = None
    judge: Callable[[], Judge] | None = None
    plans: int = 16
    minutes: float = float("inf")
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
        model, objective, selection = _select(request, goal, model, bench)
        outcome = close_loop(
            goal,
            model,
            solve=lambda model, ms: objective.solve(model.tally, ms),
            measure=lambda solution: bench.trial(solution.keep, goal),
            on_round=lambda line: request.say(_text(line, budget, selection)),
        )
    solution = outcome.solution
    return solution.keep, replace(
        found,
        objective=objective.name,
        pool=() if selection is None else selection.entries,
        judged_by="" if selection is None else selection.kind,
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
        depth=True,
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


def _select(
    request: Request, goal: Goal, model: LatencyModel, bench: Bench
) -> tuple[LatencyModel, Objective, Selection | None]:
    """The objective whose plan does best before training, and the model calibrated with and without branches.

    Without data there is nothing to judge by: the first objective is taken.
    """
    space = Space(
        request.graph,
        request.scores,
        request.normalizer,
        request.step,
        request.constraints,
        measured=None if request.worth is None else request.worth(),
        seed=request.seed,
    )
    known = objectives(space)
    if request.judge is None:
        return model, known[0], None
    target = goal.median_ms * (1 - RESERVE)
    # Plans that drop branches and keep wide layers are predicted too fast beside narrow ones: see one of each first.
    for objective in known[: 2 if space.drops else 1]:
        with suppress(BudgetError):
            solution = objective.solve(model.tally, target)
            trial = bench.trial(solution.keep, goal)
            model = model.calibrated(solution.keep, trial.assessment.model_ms, trial.profile)
            request.say(
                f"{objective.name}: predicted {solution.predicted_ms:.3g} ms, measured "
                f"{trial.assessment.model_ms:.3g} ms"
            )
    plans = proposals(known, perturbed(space), model.tally, target, count=request.plans)
    selection = select(plans, request.judge(), minutes=request.minutes, progress=request.progress)
    best = selection.entries[0]
    request.say(
        f"{len(selection.entries)} plans judged by {selection.kind}: best by {best.objective} ({best.loss:.3g}"
        + ("" if best.top1 is None else f", top-1 {best.top1:.1f} %")
        + (f", branches gone: {len(best.dropped)})" if best.dropped else ")")
    )
    return model, selection.objectives[0], selection


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


def _text(line: Round, budget: Budget, selection: Selection | None) -> str:
    unit = "x" if budget.speedup is not None else " ms"
    return (
        f"candidate: predicted {line.predicted_ms:.3g} ms, measured {line.measured_ms:.3g} ms"
        f" ({line.bound:.3g}{unit} at the end of its interval), {'within' if line.met else 'not within'} the budget; "
        f"{_worth(line, selection)}"
    )


def _worth(line: Round, selection: Selection | None) -> str:
    """What is known of a candidate beside its time: the judged loss of this plan, else the criterion's estimate."""
    if selection is not None:
        best = selection.entries[0]
        # The same objective solved for the same time by the same model is the plan that was judged.
        if (best.predicted_ms, best.importance) == (line.predicted_ms, line.importance):
            top1 = "" if best.top1 is None else f", top-1 {best.top1:.1f} %"
            return f"{selection.kind} {best.loss:.3g} before training{top1}"
    return f"{line.importance:.1%} of the importance by the criterion, which is no accuracy"
