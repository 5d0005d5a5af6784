"""The dry run: what could be pruned, what cannot and why, and which budgets are reachable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from deploypruner.build.choices import check_choices
from deploypruner.build.criterion import criterion_name, make_criterion, normalizer_name
from deploypruner.build.feeds import training_batches
from deploypruner.build.folder import BuildFolder
from deploypruner.build.stages.load import Load
from deploypruner.build.state import Build, Given
from deploypruner.channels.allocate import allocate, reachable
from deploypruner.channels.constraints import STATISTICS_NOTE, find_limits
from deploypruner.channels.depth import held_branches
from deploypruner.channels.given_widths import given_widths
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.statistics import Scores, score_groups
from deploypruner.device.described import HERE
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.graph.open_axes import as_json as as_open_axes
from deploypruner.latency.clock import timed_on
from deploypruner.progress import Progress, SilentProgress
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.recipe.constraints import Statistics
from deploypruner.recipe.sections import OPEN
from deploypruner.records import Precision, Setting
from deploypruner.report.frozen import by_reason, frozen_details, frozen_summary
from deploypruner.report.groups import BRANCH, GroupLine, group_table
from deploypruner.report.terminal import wrap
from deploypruner.report.units import scaled
from deploypruner.search.preview import LatencyOutlook, look_ahead

_IF_NEEDED = "statistics: cut if needed"
_LEGEND = (
    "a normalisation averages over the channels of groups marked 'statistics', so that removing some changes the "
    "others; --statistics keep|prune|auto decides"
)
_TIMED_LEGEND = (
    "'ms to gain': predicted to go with this group alone at its narrowest; 'lost per ms': the share of all "
    "importance by the criterion that goes with each of them"
)


@dataclass(frozen=True)
class DryRun:
    """What `deploypruner plan` finds out.

    Args:
        name: Of the model.
        graph: The traced model.
        recipe: What may be cut, and how far.
        plan: The widths for a budget, None where none was asked for.
        remarks: What a user should know.
        outlook: Predicted milliseconds, None where nobody asked for them.
    """

    name: str
    graph: Graph
    recipe: PruneRecipe
    plan: Plan | None
    remarks: tuple[str, ...]
    outlook: LatencyOutlook | None = None

    @property
    def reachable(self) -> dict[str, float]:
        """Smallest share of the MACs that may remain: by the recipe, and with and without cutting statistics."""
        step, constraints, dense = self.recipe.step, self.recipe.constraints, self.graph.costs.macs()
        policies: dict[str, Statistics] = {"statistics kept": "keep", "statistics cut": "prune"}
        least = {
            name: reachable(self.graph, step, replace(constraints, statistics=policy)) / max(dense, 1)
            for name, policy in policies.items()
        }
        return {**least, "": least["statistics kept" if constraints.statistics == "keep" else "statistics cut"]}

    @property
    def lines(self) -> list[GroupLine]:
        """One line per group, then one per residual branch."""
        graph, policy = self.graph, self.recipe.statistics
        limits = find_limits(graph, self.recipe.constraints, step=self.recipe.step, statistics=policy != "keep")
        widths = {g.id: len(g.keep) for g in self.plan.groups} if self.plan else {}
        tally, dense, found = graph.tally(), graph.costs.macs(), []
        for group in graph.groups:
            gone = dense - tally.keep(group.id, np.arange(0))
            tally.keep(group.id, np.arange(group.size))
            limit = limits[group.id]
            note = f"whole: {limit.whole}" if limit.whole else ""
            if not note and group.changes_statistics:
                note = _IF_NEEDED if policy == "auto" else STATISTICS_NOTE
            width = widths.get(group.id)
            share = gone / max(dense, 1)
            time = self.outlook.groups[group.id] if self.outlook else None
            found.append(
                GroupLine(
                    *(group.id, group.kind, group.size, width, group.macs_per_channel, share, note),
                    saved_ms=time.saved_ms if time else None,
                    importance_per_ms=time.importance_per_ms if time else None,
                )
            )
        return [*found, *self._branches(max(dense, 1))]

    def _branches(self, dense: int) -> Iterator[GroupLine]:
        """What a budget of time may leave out as a whole."""
        held = held_branches(self.graph, self.recipe.constraints)
        dropped = self.plan.dropped if self.plan else ()
        for branch in self.graph.branches:
            width = None if self.plan is None else int(branch.id not in dropped)
            note = f"whole: {held[branch.id]}" if held[branch.id] else "may go"
            time = self.outlook.groups[branch.id] if self.outlook else None
            yield GroupLine(
                *(branch.id, BRANCH, 1, width, branch.macs, branch.macs / dense, note),
                saved_ms=time.saved_ms if time else None,
                importance_per_ms=time.importance_per_ms if time else None,
            )


def dry_run(
    recipe: Recipe, *, with_widths: bool, with_times: bool = False, progress: Progress | None = None
) -> DryRun:
    """Load and trace the model; nothing is written to disk but the timings of layers in the user's cache.

    Args:
        recipe: Resolved recipe.
        with_widths: Also score, and choose the widths for `recipe.prune.budget`.
        with_times: Also predict milliseconds; always so for widths under a budget of time.
        progress: Told about the layers' timing.

    Raises:
        BudgetError: The budget cannot be reached.
        MeasureError: Layers cannot be timed.
        RecipeError: Milliseconds are predicted for a number of threads, and that is left open.
    """
    timed = with_times or (with_widths and recipe.prune.budget.macs is None)
    if timed:
        _one_number(recipe.measure.threads)
    # A machine is asked only where its time is.
    with timed_on(recipe.target if timed else HERE, runtimes=recipe.measure.runtimes):
        return _dry_run(recipe, with_widths=with_widths, timed=timed, progress=progress)


def _dry_run(recipe: Recipe, *, with_widths: bool, timed: bool, progress: Progress | None) -> DryRun:
    build, graph = loaded(recipe, "deploypruner plan")
    given = given_widths(graph, recipe.prune.constraints, step=recipe.prune.step).remarks
    remarks = (*build.remarks, *graph.remarks, *given)
    if not (with_widths or timed):
        return DryRun(build.name, graph, recipe.prune, None, remarks)
    name = criterion_name(recipe.prune, has_data=build.data is not None)
    scores = _scores(build, graph, name)
    found = _outlook(build, graph, scores, name, with_widths, progress) if timed else None
    remarks += () if found is None else found.remarks
    plan = None
    if found is not None and found.solution is not None:
        plan = make_plan(graph, found.solution.keep, criterion=name, scope="latency", step=recipe.prune.step)
    elif with_widths:
        plan = _plan(build, graph, scores, name)
    return DryRun(build.name, graph, recipe.prune, plan, remarks, found)


def loaded(recipe: Recipe, command: str) -> tuple[Build, Graph]:
    """Check a recipe, load its model and data, and trace; nothing is written to disk.

    Raises:
        DeployPrunerError: Anything of it cannot be used.
    """
    check_choices(recipe, Given())
    build = Load().run(Build(recipe, BuildFolder(Path("build")), command, Given(), SilentProgress()))
    assert build.model is not None, "stage 'load' gives a model"
    return build, trace(build.model, build.example_inputs, dynamic_shapes=recipe.model.dynamic or None)


def describe(found: DryRun, *, frozen: bool, width: int | None = None) -> str:
    """Text for a terminal.

    Args:
        found: The dry run.
        frozen: List frozen channels with layers and source lines instead of counting them by reason.
        width: Columns of the terminal, None for no limit.
    """
    graph, plan = found.graph, found.plan
    batch = "any batch size" if graph.dynamic_batch else "the example's batch size only"
    lines = [
        wrap(
            "",
            f"{found.name}: {scaled(graph.costs.macs())} MACs, {scaled(graph.costs.params())} parameters, "
            f"{len(graph.groups)} group{'' if len(graph.groups) == 1 else 's'}; traced by {graph.front_end}, {batch}",
            width,
        ),
        wrap("reachable: ", _range(found), width),
        *([wrap("time: ", _times(found.outlook), width)] if found.outlook else []),
        *([wrap("plan: ", _outcome(plan, found.outlook), width)] if plan else []),
        "",
        *group_table(found.lines, width),
        *([wrap("", _TIMED_LEGEND, width)] if found.outlook else []),
        *([wrap("", _LEGEND, width)] if any(g.changes_statistics for g in graph.groups) else []),
        "",
        *(frozen_details if frozen else frozen_summary)(graph.frozen, width),
        "",
        *(wrap("note: ", remark, width) for remark in found.remarks),
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def as_json(found: DryRun) -> dict[str, Any]:
    """The same as `describe`, for a program; groups are not collapsed."""
    graph = found.graph
    partners = {g.id: g for g in graph.groups}
    return {
        "model": found.name,
        "front_end": graph.front_end,
        "dynamic_batch": graph.dynamic_batch,
        "open_axes": as_open_axes(graph.open_axes),
        "macs": graph.costs.macs(),
        "params": graph.costs.params(),
        "macs_after": found.plan.macs_after if found.plan else None,
        "params_after": found.plan.params_after if found.plan else None,
        "time": _time_document(found.outlook) if found.outlook else None,
        "reachable": {name or "as asked": least for name, least in found.reachable.items()},
        "groups": [
            {
                "id": line.id,
                "kind": line.kind,
                "size": line.size,
                "keep": line.width,
                "macs_per_channel": line.macs,
                "share_of_macs": line.share,
                "saved_ms": line.saved_ms,
                "importance_per_ms": line.importance_per_ms,
                "changes_statistics": partners[line.id].changes_statistics,
                "partners": list(partners[line.id].partners),
                "parameters": [[m.parameter, m.axis] for m in partners[line.id].members],
                "note": line.note,
            }
            for line in found.lines
            if line.kind != BRANCH
        ],
        "branches": [
            {
                "id": branch.id,
                "stays": None if found.plan is None else branch.id not in found.plan.dropped,
                "macs": branch.macs,
                "params": branch.params,
                "groups": list(branch.groups),
                "parameters": list(branch.parameters),
                "where": branch.where,
            }
            for branch in graph.branches
        ],
        "frozen": [
            {"reason": f.reason, "where": f.where, "channels": f.count, "layers": list(f.layers)}
            for f in by_reason(graph.frozen)
        ],
        "remarks": list(found.remarks),
    }


def _time_document(outlook: LatencyOutlook) -> dict[str, Any]:
    solution = outlook.solution
    return {
        "setting": asdict(outlook.setting),
        "dense_ms": outlook.reach.dense_ms,
        "fastest_ms": outlook.reach.fastest_ms,
        "predicted_ms": solution.predicted_ms if solution else None,
        "importance": solution.importance if solution else None,
    }


def _range(found: DryRun) -> str:
    least = found.reachable
    text = f"--macs {least['']:.3f} to 1, widths in steps of {found.recipe.step}"
    kept, cut = least["statistics kept"], least["statistics cut"]
    if kept == cut:
        return text
    if found.recipe.statistics == "keep":
        return f"{text} ({cut:.3f} where channels that a normalisation averages over are cut too)"
    return f"{text} ({kept:.3f} where channels that a normalisation averages over stay)"


def _times(outlook: LatencyOutlook) -> str:
    dense, least = outlook.reach.dense_ms, outlook.reach.fastest_ms
    return (
        f"{least:.3g} to {dense:.3g} ms predicted for {outlook.setting}: up to --speedup {dense / least:.2f}; "
        "--runtime, --precision and --threads choose another setting"
    )


def _outcome(plan: Plan, outlook: LatencyOutlook | None) -> str:
    before, after = plan.macs_before, plan.macs_after
    text = ""
    if outlook is not None and outlook.solution is not None:
        solution = outlook.solution
        text = (
            f"{solution.dense_ms:.3g} -> {solution.predicted_ms:.3g} ms predicted, "
            f"{100 * solution.importance:.1f} % of the importance by the criterion stays, which is no accuracy; "
        )
    return text + (
        f"{scaled(before)} -> {scaled(after)} MACs ({after / before:.3f}), {scaled(plan.params_before)} -> "
        f"{scaled(plan.params_after)} parameters{_without(plan)}, by {plan.criterion}, {plan.scope}"
    )


def _without(plan: Plan) -> str:
    count = len(plan.dropped)
    return f", {count} residual branch{'' if count == 1 else 'es'} gone" if count else ""


def _scores(build: Build, graph: Graph, criterion: str) -> Scores:
    recipe, batches = build.recipe.prune, None
    if build.data is not None:
        batches = training_batches(
            build, batch_size=recipe.batch_size, count=max(1, recipe.samples // recipe.batch_size)
        )
    return score_groups(
        graph, make_criterion(criterion, recipe.parameters), batches, seed=build.recipe.seed, loss=build.loss
    )


def _predicted_in(build: Build) -> str:
    """The first runtime that was named, or OpenVINO where the machine has it."""
    names = build.measured_runtimes
    return "openvino" if not build.recipe.measure.runtimes and "openvino" in names else names[0]


def _one_number(threads: int | Literal["auto"]) -> int:
    if threads == OPEN:
        raise RecipeError(
            f"--threads {OPEN}: milliseconds are predicted for one number of threads",
            hint="give the number; `compile` is what tries several",
        )
    return threads


def _plan(build: Build, graph: Graph, scores: Scores, criterion: str) -> Plan:
    recipe = build.recipe.prune
    return allocate(
        graph,
        scores,
        recipe.budget,
        criterion=criterion,
        scope=recipe.scope,
        normalizer=normalizer_name(recipe, criterion),
        step=recipe.step,
        constraints=recipe.constraints,
    )


def _outlook(
    build: Build, graph: Graph, scores: Scores, criterion: str, with_widths: bool, progress: Progress | None
) -> LatencyOutlook:
    """Predictions in the first runtime allowed; int8 where the recipe leaves the precision open."""
    recipe, measure = build.recipe.prune, build.recipe.measure
    precision: Precision = "int8" if measure.precision == "auto" else measure.precision
    setting = Setting(_predicted_in(build), precision, _one_number(measure.threads))
    model = build.clock.latency_model(
        graph, setting, seconds=measure.table_seconds, step=recipe.step, seed=build.recipe.seed, progress=progress
    )
    found = look_ahead(
        graph,
        scores,
        model,
        setting,
        budget=recipe.budget if with_widths and recipe.budget.macs is None else None,
        normalizer=normalizer_name(recipe, criterion),
        step=recipe.step,
        constraints=recipe.constraints,
        seed=build.recipe.seed,
    )
    return replace(found, remarks=tuple(model.facts["remarks"]))
