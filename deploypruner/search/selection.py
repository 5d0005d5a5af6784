"""Which objective the closed loop goes on with: its plan does best among plans of equal measured time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from deploypruner.errors import BudgetError
from deploypruner.graph import Keep
from deploypruner.latency import LatencyModel
from deploypruner.search.bench import CandidateBench
from deploypruner.search.candidates import Candidates, Look
from deploypruner.search.equal_time import EqualTime
from deploypruner.search.goal import Goal
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.loop import RESERVE
from deploypruner.search.objectives import Objective, Space, base_name, objectives, perturbed, proposals
from deploypruner.search.pace import find_pace
from deploypruner.search.pool import QUICK, Selection, select, train_contenders
from deploypruner.search.proposed import Proposed
from deploypruner.search.refine import refine
from deploypruner.search.request import SearchRequest
from deploypruner.search.solve import Solution
from deploypruner.search.time_limit import TimeLimit

# Rounds of the closed loop that looks at plans leave time for.
_ROUNDS_LEFT = 3
# Part of the time that is left which measuring the worth may take: plans are still to be judged.
_WORTH_SHARE = 0.5
# Plans of different kinds that the closed loop may go on with.
_CONTENDERS = 3


@dataclass(frozen=True)
class Contender:
    """What a closed loop begins with.

    Args:
        objective: What plans are solved for.
        model: Right about the plan of this objective that was measured last; else calibrated with one that drops
            branches and one that does not.
        plan: That was judged, None without data.
        loss: Of that plan.
    """

    objective: Objective
    model: LatencyModel
    plan: Solution | None = None
    loss: float = 0.0


@dataclass(frozen=True)
class Chosen:
    """What the closed loop goes on with.

    Args:
        contenders: The best first; one alone without data.
        seen: Every plan that was measured or looked at.
        goal: What to reach; the one that was found where it was to be.
        judge: Of the pool, None without data.
        selection: The pool that the contenders came out of, None without data.
    """

    contenders: tuple[Contender, ...]
    seen: Candidates
    goal: Goal
    judge: Judge | None = None
    selection: Selection | None = None


def choose_objective(
    request: SearchRequest,
    goal: Goal,
    model: LatencyModel,
    bench: CandidateBench,
    *,
    limit: TimeLimit,
    spent: float = 0.0,
) -> Chosen:
    """The objective whose plan does best before training; without data, where nothing can be judged, the first.

    Args:
        request: The search.
        goal: What to reach.
        model: Predicts milliseconds.
        bench: Measures candidates.
        limit: Time for all of it.
        spent: Points that the precision alone costs.
    """
    worth_until = limit.spent + _WORTH_SHARE * max(0.0, limit.left)

    def enough(seconds: float) -> bool:
        over = limit.spent + seconds > worth_until
        if over:
            limit.cut("worth measured on a part of the samples")
        return over

    space = Space(
        request.graph,
        request.scores,
        request.normalizer,
        request.step,
        request.constraints,
        measured=None if request.worth is None else request.worth(enough),
        seed=request.seed,
    )
    if not space.drops:
        request.say(f"only widths are chosen: {_no_branches(space)}")
    known, seen = objectives(space), Candidates(request.graph)
    if request.judge is None:
        return Chosen((Contender(known[0], model),), seen, goal)
    judge = request.judge()
    if goal.budget.fastest:
        goal = find_pace(request, goal, judge, known[0], model=model, spent=spent, limit=limit, seen=seen)
    target = goal.median_ms * (1 - RESERVE)
    model = _corrected(request, goal, bench, model, known[: 2 if space.drops else 1], limit=limit, seen=seen)
    file = Proposed.of(request, space, bench.setting)
    plans = file.plans(known, space)
    if plans is None:
        plans = proposals(known, perturbed(space), model.tally, target, count=request.plans)
        file.add(plans)
    equal = EqualTime(
        target,
        model,
        measure=lambda plan: bench.trial(plan.keep, goal),
        file=file,
        limit=limit,
        seen=lambda objective, plan, ms: _measured(request, seen, objective, plan, ms=ms),
    )
    selection = select(plans, judge, settle=equal.settle, limit=limit, progress=request.progress)
    selection = _refined(request, selection, judge, equal, limit)
    if request.train is not None:
        train = partial(_trained, request.train, judge)
        selection = train_contenders(selection, train, limit=limit, progress=request.progress)
    limit.reserve = 0.0
    _add_pool(seen, selection, judge)
    best = selection.best
    gone, top1 = len(best.solution.dropped), best.verdict.top1
    request.say(
        f"{len(selection.plans)} plans judged by {selection.kind}: best by {best.objective.name} ({best.loss:.3g}"
        + ("" if top1 is None else f", top-1 {top1:.1f} %")
        + (f", {gone} residual branch{'' if gone == 1 else 'es'} gone)" if gone else ")")
    )
    return Chosen(_contenders(selection, equal), seen, goal, judge, selection)


def _contenders(selection: Selection, equal: EqualTime) -> tuple[Contender, ...]:
    """The best plans of different kinds, of those that got a full look; the best one in any case."""
    found: dict[str, Contender] = {}
    for plan in selection.plans:
        kind = base_name(plan.objective.name)
        if kind not in found and (plan.full or not found):
            found[kind] = Contender(plan.objective, equal.model_of(plan.objective), plan.solution, plan.loss)
    return tuple(found.values())[:_CONTENDERS]


def _corrected(
    request: SearchRequest,
    goal: Goal,
    bench: CandidateBench,
    model: LatencyModel,
    first: Sequence[Objective],
    *,
    limit: TimeLimit,
    seen: Candidates,
) -> LatencyModel:
    """The model after one plan of each of the first objectives was measured.

    Plans that drop branches and keep wide layers are predicted too fast beside narrow ones: one of each is seen.
    """
    for objective in first:
        if not limit.allows():
            limit.cut(f"'{objective.name}' not measured to correct the predicted time")
            continue
        with suppress(BudgetError):
            begun = limit.spent
            solution = objective.solve(model.tally, goal.median_ms * (1 - RESERVE))
            trial = bench.trial(solution.keep, goal)
            model = model.calibrated(solution.keep, trial.assessment.model_ms, trial.profile)
            limit.reserve = _ROUNDS_LEFT * (limit.spent - begun)
            _measured(request, seen, objective, solution, ms=trial.assessment.model_ms)
    return model


def _measured(request: SearchRequest, seen: Candidates, objective: Objective, plan: Solution, *, ms: float) -> None:
    seen.add(objective.name, plan, measured_ms=ms)
    request.say(f"{objective.name}: predicted {plan.predicted_ms:.3g} ms, measured {ms:.3g} ms")


def _add_pool(seen: Candidates, selection: Selection, judge: Judge) -> None:
    """What was found of each plan of the pool, against the dense model on the same samples."""
    for plan in selection.plans:
        look = Look.of(plan.verdict, judge.dense_on(1.0 if plan.full else QUICK))
        seen.add(plan.objective.name, plan.solution, look=replace(look, trained=plan.trained))


def _refined(
    request: SearchRequest,
    selection: Selection,
    judge: Judge,
    equal: EqualTime,
    limit: TimeLimit,
) -> Selection:
    """With plans near the best one that do better."""
    before = selection.best
    found = refine(selection, judge, equal.solve, settle=equal.settle, limit=limit, progress=request.progress)
    if found.looks:
        how = "" if found.repaired else " without repair, which orders the pool alike"
        better = f"{before.loss:.3g} -> {found.selection.best.loss:.3g}"
        request.say(f"{found.looks} plans near the best one judged{how}, {found.kept} better: {better}")
    return found.selection


def _trained(train: Callable[[Judge, Keep], Verdict], judge: Judge, solution: Solution) -> Verdict:
    return train(judge, solution.keep)


def _no_branches(space: Space) -> str:
    """Why no residual branch may go."""
    if not space.graph.branches:
        return "the model has no residual branch whose removal leaves the identity"
    reasons = Counter(space.held.values())
    return ", ".join(f"{count} residual branches stay: {why}" for why, count in reasons.items())
