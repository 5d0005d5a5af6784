"""allocate: scores and the budget to a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from torch import Tensor

from deploypruner.build.allocation import WORTH, dense_jobs, measured_worth, plan_in_macs
from deploypruner.build.artifacts import DENSE, DENSE_OWN, MIXED, with_dense, with_dense_mixed
from deploypruner.build.channels import choosing_scores
from deploypruner.build.criterion import normalizer_name
from deploypruner.build.dense_mix import dense_mix
from deploypruner.build.evaluate import judge, validation_samples
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.judging import can_train_briefly, make_judge, trained_briefly
from deploypruner.build.reach import REACHABLE, save_reachable
from deploypruner.build.register import stages
from deploypruner.build.sparsity import check_widths
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.given_widths import given_widths
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.measure import Job
from deploypruner.recipe import BUDGETS
from deploypruner.records import Quality
from deploypruner.search.choose import INT8_AGREEMENT_DROP, INT8_DROP
from deploypruner.search.found import SearchResult
from deploypruner.search.kept import ACCURACY_DROP, AGREEMENT_DROP
from deploypruner.search.latency_search import OutOfReach, meet
from deploypruner.search.losses import Losses
from deploypruner.search.measured import losses_from_worth
from deploypruner.search.request import SearchRequest
from deploypruner.sparsity.patterns import CHANNEL

_FOUND = stage_file("search.json")


@stages.register("allocate")
class Allocate(Stage):
    """Choose the width of every group under the budget."""

    name: ClassVar[str] = "allocate"
    needs: ClassVar[tuple[str, ...]] = ("score", "settle")
    reads: ClassVar[tuple[str, ...]] = (
        "prune",
        "search",
        "measure",
        "recover",
        "learn.schedule",
        "quantize",
        "sparse",
        "target",
        "seed",
    )
    # Plans may be judged by a brief training; whatever its rate and whatever follows, the chosen one is sound.
    outlives: ClassVar[tuple[str, ...]] = ("recover.settings.lr", "recover.epochs", "measure.seconds")
    changeable: ClassVar[tuple[str, ...]] = (
        *(f"prune.{name}" for name in BUDGETS),
        *("measure.precision", "measure.accuracy_drop", "search.minutes"),
    )
    writes: ClassVar[tuple[str, ...]] = (REACHABLE,)
    # The dense files are written where the plan is timed beside them, or to see that ONNX can hold the model.
    saves: ClassVar[tuple[str, ...]] = (stage_file("allocated.json"), _FOUND, *DENSE, *DENSE_OWN, *MIXED)
    lends: ClassVar[tuple[str, ...]] = (WORTH, *DENSE, *DENSE_OWN)

    def run(self, build: Build) -> Build:
        """Give the plan and save it."""
        recipe = build.recipe.prune
        if recipe.budget.kind == "macs":
            build = _in_macs(build)
            if build.traced.front_end == "torch.export":  # a model that ONNX cannot hold is refused before it trains
                build = with_dense(build)
        elif CHANNEL in recipe.patterns:
            build = _in_time(build)
        else:  # zeros have to meet it, see `assign`
            whole = make_plan(build.traced, {}, criterion=build.criterion, scope=recipe.scope, step=recipe.step)
            build = replace(build, plan=whole)
        build.folder.write_json(self.saves[0], build.planned.to_json())
        build.folder.write_json(_FOUND, None if build.found is None else build.found.to_json())
        return build

    def restore(self, build: Build) -> Build:
        """Read the plan of an earlier run."""
        plan = Plan.from_json(build.folder.read_json(self.saves[0]))
        plan.check(build.traced)
        found = build.folder.read_json(_FOUND)
        return replace(build, plan=plan, found=None if found is None else SearchResult.from_json(found))

    def validate(self, build: Build) -> None:
        """Refuse widths that the sparse pattern does not divide."""
        check_widths(build)

    def document(self, build: Build) -> str:
        """MACs before and after, and milliseconds where they are what counts."""
        plan, found = build.planned, build.found
        cut = sum(build.traced.group(g.id).changes_statistics and len(g.keep) < g.size for g in plan.groups)
        statistics = f"; {cut} of the groups are averaged over by a normalisation" if cut else ""
        macs = (
            f"{plan.macs_before / 1e6:.2f} -> {plan.macs_after / 1e6:.2f} M MACs "
            f"({plan.macs_after / plan.macs_before:.3f})"
        )
        if found is None:
            return f"{macs}, {plan.scope}, widths in steps of {plan.step}{statistics}"
        if not found.rounds or found.measured_ms is None:
            return found.remark
        pool = f", best of {_counted(len(found.pool), 'plan')} judged" if found.pool else ", no plan judged"
        gone = f", {_counted(len(plan.dropped), 'branch', 'branches')} gone" if plan.dropped else ""
        return (
            f"{found.dense_ms:.3g} -> {found.measured_ms:.3g} ms ({found.setting}) in "
            f"{_counted(len(found.rounds), 'round')}{pool}{gone}, {macs}{statistics}"
        )


def _counted(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _in_macs(build: Build) -> Build:
    assert build.scores is not None, "stage 'score' has not run"
    recipe = build.recipe.prune
    for remark in given_widths(build.traced, recipe.constraints, step=recipe.step).remarks:
        build.say(f"remark: {remark}")
    return replace(build, plan=plan_in_macs(build, choosing_scores(build), recipe.budget))


def _in_time(build: Build) -> Build:
    assert build.scores is not None, "stage 'score' has not run"
    scores = build.scores
    _without_mixed(build)  # that of an earlier pass
    build = with_dense_mixed(with_dense(build))
    recipe, measure = build.recipe.prune, build.recipe.measure
    request = SearchRequest(
        graph=build.traced,
        scores=choosing_scores(build),
        budget=recipe.budget,
        jobs=dense_jobs(build),
        normalizer=normalizer_name(recipe, build.criterion),
        step=recipe.step,
        constraints=recipe.constraints,
        threads=build.threads,
        accuracy_drop=_int8_drop(build),
        qualities=lambda jobs: _qualities(build, jobs),
        floats=build.floats,
        mixed=None if build.data is None else partial(dense_mix, build, allowed=_int8_drop(build)),
        feeds=timing_feeds(build),
        table_seconds=measure.table_seconds,
        worth=None if build.data is None else lambda enough: _worth(build, scores, enough),
        judge=None
        if build.data is None or build.recipe.search.plans == 1
        else lambda: make_judge(build, remark=True),
        train=(lambda judge, keep: trained_briefly(build, judge, keep)) if can_train_briefly(build) else None,
        keeping=_keeping(build),
        allowed=_allowed(build),
        paces=build.paces,
        plans=build.recipe.search.plans,
        minutes=build.recipe.search.minutes,
        folder=build.folder.claim(stage_file("pool.json")).parent,
        seed=build.recipe.seed,
        progress=build.progress,
        say=build.say,
        clock=build.clock,
    )
    if build.data is None:
        build.say("remark: without data nothing is measured about accuracy; the criterion alone decides what goes")
    try:
        keep, found = meet(request)
    except OutOfReach as error:
        save_reachable(build.folder, error, error.numbers)
        raise
    if not found.setting.floats:
        _without_mixed(build)
    plan = make_plan(build.traced, keep, criterion=build.criterion, scope="latency", step=recipe.step)
    return with_dense_mixed(replace(build, plan=plan, found=found))


def _without_mixed(build: Build) -> None:
    for name in MIXED:
        build.folder.discard(name)


def _worth(build: Build, scores: Mapping[str, Tensor], enough: Callable[[float], bool]) -> Losses:
    measured = measured_worth(build, scores, enough=enough)
    build.say(
        f"{len(measured.groups)} widths and {len(measured.branches)} branches measured by {measured.kind} on "
        f"{measured.samples} samples"
    )
    return losses_from_worth(build.traced, measured, scores, by_importance(scores))


def _keeping(build: Build) -> float | None:
    """Points that may be lost where the plan is all there will be; None where training follows."""
    recover = build.recipe.recover
    if build.data is None or recover.trains or recover.train or build.given.train is not None:
        return None
    return _allowed(build)


def _allowed(build: Build) -> float:
    """Points that everything together may cost."""
    asked = build.recipe.measure.accuracy_drop
    if asked is not None:
        return asked
    return ACCURACY_DROP if _judged(build) else AGREEMENT_DROP


def _int8_drop(build: Build) -> float:
    """Points that int8 alone may cost."""
    asked = build.recipe.measure.accuracy_drop
    if asked is not None:
        return asked
    return INT8_DROP if _judged(build) else INT8_AGREEMENT_DROP


def _judged(build: Build) -> bool:
    """Is quality a metric on labels, and not agreement?"""
    return build.metric is not None or any(output.label is not None for output in build.tasks)


def _qualities(build: Build, jobs: Sequence[Job]) -> list[Quality | None]:
    """Quality of every job against the dense fp32 model, where there is data to see it on."""
    if build.data is None:
        return [None] * len(jobs)
    return list(judge(build, list(jobs), validation_samples(build)))
