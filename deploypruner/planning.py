"""The dry run: what could be pruned, what cannot and why, and which budgets are reachable."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from deploypruner.criteria import criteria
from deploypruner.folder import BuildFolder
from deploypruner.graph import Graph, trace
from deploypruner.progress import SilentProgress
from deploypruner.prune.allocate import allocate, reachable
from deploypruner.prune.evidence import score_groups
from deploypruner.prune.plan import Plan
from deploypruner.recipe import Recipe
from deploypruner.records import Budget
from deploypruner.stages import Build, Given
from deploypruner.stages.choices import check_choices
from deploypruner.stages.load import Load
from deploypruner.stages.score import criterion_name, make_criterion, training_batches


def describe(recipe: Recipe, *, with_widths: bool, frozen: bool) -> str:
    """Text for the terminal; nothing is written to disk.

    Args:
        recipe: Resolved recipe.
        with_widths: Also score and allocate, and show the widths for `recipe.prune.macs`.
        frozen: List frozen channels layer by layer instead of counting them by reason.
    """
    check_choices(recipe, Given())
    build = Load().run(Build(recipe, BuildFolder(Path("build")), "deploypruner plan", Given(), SilentProgress()))
    assert build.model is not None, "stage 'load' gives a model"
    graph = trace(build.model, build.example_inputs)
    plan = _plan(build, graph) if with_widths else None
    dense, least = graph.costs.macs(), reachable(graph, recipe.prune.step)
    lines = [
        f"{build.name}: {dense / 1e6:.2f} M MACs, {graph.costs.params():,} parameters, {len(graph.groups)} groups",
        f"reachable: --macs {least / dense:.3f} to 1, widths in steps of {recipe.prune.step}",
        "",
        *_groups(graph, plan),
        "",
        *(_frozen_by_layer(graph) if frozen else _frozen_by_reason(graph)),
        *(f"note: {remark}" for remark in (*build.remarks, *graph.remarks)),
    ]
    return "\n".join(lines) + "\n"


def _plan(build: Build, graph: Graph) -> Plan:
    recipe = build.recipe.prune
    name = criterion_name(recipe, has_data=build.data is not None)
    batches = None
    if build.data is not None:
        batches = training_batches(
            build, batch_size=recipe.batch_size, count=max(1, recipe.samples // recipe.batch_size)
        )
    scores = score_groups(graph, make_criterion(name, recipe.parameters), batches, seed=build.recipe.seed)
    normalizer, budget = criteria.get(name).normalizer, Budget(macs=recipe.macs)
    return allocate(
        graph, scores, budget, criterion=name, scope=recipe.scope, normalizer=normalizer, step=recipe.step
    )


def _groups(graph: Graph, plan: Plan | None) -> list[str]:
    keep = {g.id: len(g.keep) for g in plan.groups} if plan else {}
    rows = []
    for group in graph.groups:
        width = f"{group.size} -> {keep[group.id]}" if plan else str(group.size)
        note = (
            "shares entries with a larger group"
            if group.secondary
            else "changes a normalisation statistic: left whole"
            if group.changes_statistics
            else ""
        )
        rows.append((group.id, width, f"{group.macs_per_channel / 1e3:.1f}", str(len(group.members)), note))
    header = ("group", "channels", "k MACs/channel", "parameters", "")
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(4)]
    line = "{:{}}  {:>{}}  {:>{}}  {:>{}}  {}"
    return [
        line.format(r[0], widths[0], r[1], widths[1], r[2], widths[2], r[3], widths[3], r[4]).rstrip()
        for r in [header, *rows]
    ]


def _frozen_by_reason(graph: Graph) -> list[str]:
    counts: dict[str, int] = defaultdict(int)
    for entry in graph.frozen:
        counts[entry.reason] += entry.count
    return [f"frozen: {count} channels, {reason}" for reason, count in counts.items()] + [""]


def _frozen_by_layer(graph: Graph) -> list[str]:
    side = {0: "output", 1: "input"}
    return [
        f"frozen: {f.count} {side.get(f.axis, f'axis {f.axis}')} channels of {f.parameter}: {f.reason}"
        + (f", at {f.where}" if f.where else "")
        for f in graph.frozen
    ] + [""]
