"""Which objective the closed loop goes on with: its plan does best among plans of equal predicted time."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

from deploypruner.errors import BudgetError
from deploypruner.latency import LatencyModel
from deploypruner.prune.depth import held_branches
from deploypruner.search.bench import Bench
from deploypruner.search.goal import Goal
from deploypruner.search.judge import Judge, Verdict
from deploypruner.search.loop import RESERVE
from deploypruner.search.objectives import Objective, Space, objectives, perturbed, proposals
from deploypruner.search.pool import Selection, select, train_contenders
from deploypruner.search.request import Request

# Plans that are judged to find the fastest one that keeps the quality.
_KEEPING_LOOKS = 4
# Part of the images for that: the answer is to a few percent anyway.
_KEEPING_SHARE = 0.5


@dataclass(frozen=True)
class Chosen:
    """What the closed loop goes on with.

    Args:
        objective: What plans are solved for.
        model: Calibrated with one plan that drops branches, and with one that does not.
        selection: The pool that the objective came out of, None without data.
        keeps: As in `Found`.
    """

    objective: Objective
    model: LatencyModel
    selection: Selection | None = None
    keeps: float | None = None


def choose_objective(request: Request, goal: Goal, model: LatencyModel, bench: Bench) -> Chosen:
    """The objective whose plan does best before training; without data, where nothing can be judged, the first.

    Args:
        request: The search.
        goal: What to reach.
        model: Predicts milliseconds.
        bench: Measures candidates.
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
    if not space.drops:
        request.say(f"only widths are chosen: {_no_branches(space)}")
    known = objectives(space)
    if request.judge is None:
        return Chosen(known[0], model)
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
    judge, train = request.judge(), request.train
    selection = select(plans, judge, minutes=request.minutes, progress=request.progress)
    if selection.remark:
        request.say(f"remark: {selection.remark}")
    if train is not None:
        selection = train_contenders(selection, lambda s: train(judge, s.keep), progress=request.progress)
    best = selection.entries[0]
    request.say(
        f"{len(selection.entries)} plans judged by {selection.kind}: best by {best.objective} ({best.loss:.3g}"
        + ("" if best.top1 is None else f", top-1 {best.top1:.1f} %")
        + (
            f", {len(best.dropped)} residual branch{'' if len(best.dropped) == 1 else 'es'} gone)"
            if best.dropped
            else ")"
        )
    )
    keeps = None
    if _loses(judge.dense, best.top1, request.keeping):
        keeps = _fastest_keeping(request, selection.objectives[0], judge, model, within=(target, goal.dense_ms))
        reached = (
            "no plan that was looked at keeps it" if keeps is None else f"{keeps:.3g} ms are predicted to keep it"
        )
        request.say(f"without training this loses more than {request.keeping:g} points; {reached}")
    return Chosen(selection.objectives[0], model, selection, keeps)


def _no_branches(space: Space) -> str:
    """Why no residual branch may go."""
    if not space.graph.branches:
        return "the model has no residual branch whose removal leaves the identity"
    reasons = Counter(held_branches(space.graph, space.constraints).values())
    return ", ".join(f"{count} residual branches stay: {why}" for why, count in reasons.items())


def _loses(dense: Verdict, top1: float | None, allowed: float | None) -> bool:
    """Is more lost than allowed? Not where nothing is known."""
    return allowed is not None and dense.top1 is not None and top1 is not None and dense.top1 - top1 > allowed


def _fastest_keeping(
    request: Request, objective: Objective, judge: Judge, model: LatencyModel, *, within: tuple[float, float]
) -> float | None:
    """Predicted milliseconds of the fastest plan by this objective that keeps enough, to a few percent."""
    (low, high), best = within, None
    for _ in range(_KEEPING_LOOKS):
        middle = (low * high) ** 0.5
        solution = objective.solve(model.tally, middle)
        if _loses(judge.dense, judge.look(solution.keep, share=_KEEPING_SHARE).top1, request.keeping):
            low = middle
        else:
            high, best = middle, solution.predicted_ms
    return best
