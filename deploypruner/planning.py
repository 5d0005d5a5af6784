"""The dry run: what could be pruned, what cannot and why, and which budgets are reachable."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploypruner.budget import Budget
from deploypruner.criteria import criteria
from deploypruner.folder import BuildFolder
from deploypruner.graph import Graph, trace
from deploypruner.progress import SilentProgress
from deploypruner.prune.allocate import allocate, reachable
from deploypruner.prune.constraints import STATISTICS_NOTE, Statistics, find_limits
from deploypruner.prune.evidence import score_groups
from deploypruner.prune.plan import Plan
from deploypruner.recipe import PruneRecipe, Recipe
from deploypruner.report.frozen import by_reason, frozen_details, frozen_summary
from deploypruner.report.groups import GroupLine, group_table
from deploypruner.report.terminal import wrap
from deploypruner.report.units import scaled
from deploypruner.stages import Build, Given
from deploypruner.stages.choices import check_choices
from deploypruner.stages.load import Load
from deploypruner.stages.score import criterion_name, make_criterion, training_batches

_IF_NEEDED = "statistics: cut if needed"
_LEGEND = (
    "a normalisation averages over the channels of groups marked 'statistics', so that removing some changes the "
    "others; --statistics keep|prune|auto decides"
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
    """

    name: str
    graph: Graph
    recipe: PruneRecipe
    plan: Plan | None
    remarks: tuple[str, ...]

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
        """One line per group."""
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
            found.append(GroupLine(group.id, group.kind, group.size, width, group.macs_per_channel, share, note))
        return found


def dry_run(recipe: Recipe, *, with_widths: bool) -> DryRun:
    """Load and trace the model; nothing is written to disk.

    Args:
        recipe: Resolved recipe.
        with_widths: Also score and allocate for `recipe.prune.macs`.
    """
    check_choices(recipe, Given())
    build = Load().run(Build(recipe, BuildFolder(Path("build")), "deploypruner plan", Given(), SilentProgress()))
    assert build.model is not None, "stage 'load' gives a model"
    graph = trace(build.model, build.example_inputs)
    plan = _plan(build, graph) if with_widths else None
    return DryRun(build.name, graph, recipe.prune, plan, (*build.remarks, *graph.remarks))


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
        *([wrap("plan: ", _outcome(plan), width)] if plan else []),
        "",
        *group_table(found.lines, width),
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
        "macs": graph.costs.macs(),
        "params": graph.costs.params(),
        "macs_after": found.plan.macs_after if found.plan else None,
        "params_after": found.plan.params_after if found.plan else None,
        "reachable": {name or "as asked": least for name, least in found.reachable.items()},
        "groups": [
            {
                "id": line.id,
                "kind": line.kind,
                "size": line.size,
                "keep": line.width,
                "macs_per_channel": line.macs,
                "share_of_macs": line.share,
                "changes_statistics": partners[line.id].changes_statistics,
                "partners": list(partners[line.id].partners),
                "parameters": [[m.parameter, m.axis] for m in partners[line.id].members],
                "note": line.note,
            }
            for line in found.lines
        ],
        "frozen": [
            {"reason": f.reason, "where": f.where, "channels": f.count, "layers": list(f.layers)}
            for f in by_reason(graph.frozen)
        ],
        "remarks": list(found.remarks),
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


def _outcome(plan: Plan) -> str:
    before, after = plan.macs_before, plan.macs_after
    return (
        f"{scaled(before)} -> {scaled(after)} MACs ({after / before:.3f}), {scaled(plan.params_before)} -> "
        f"{scaled(plan.params_after)} parameters, by {plan.criterion}, {plan.scope}"
    )


def _plan(build: Build, graph: Graph) -> Plan:
    recipe = build.recipe.prune
    name = criterion_name(recipe, has_data=build.data is not None)
    batches = None
    if build.data is not None:
        batches = training_batches(
            build, batch_size=recipe.batch_size, count=max(1, recipe.samples // recipe.batch_size)
        )
    scores = score_groups(graph, make_criterion(name, recipe.parameters), batches, seed=build.recipe.seed)
    return allocate(
        graph,
        scores,
        Budget(macs=recipe.macs),
        criterion=name,
        scope=recipe.scope,
        normalizer=criteria.get(name).normalizer,
        step=recipe.step,
        constraints=recipe.constraints,
    )
