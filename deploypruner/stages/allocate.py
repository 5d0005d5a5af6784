"""allocate: scores and the budget to a plan."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.budget import Budget
from deploypruner.criteria import criteria
from deploypruner.prune.allocate import allocate
from deploypruner.prune.plan import Plan
from deploypruner.stages import Build, Stage


class Allocate(Stage):
    """Choose the width of every group under the budget."""

    name: ClassVar[str] = "allocate"
    saves: ClassVar[tuple[str, ...]] = ("plan.json",)

    def run(self, build: Build) -> Build:
        """Give the plan and save it."""
        assert build.scores is not None, "stage 'score' has not run"
        recipe = build.recipe.prune
        plan = allocate(
            build.traced,
            build.scores,
            Budget(macs=recipe.macs),
            criterion=build.criterion,
            scope=recipe.scope,
            normalizer=criteria.get(build.criterion).normalizer,
            step=recipe.step,
            constraints=recipe.constraints,
        )
        build.folder.write_json(self.saves[0], plan.to_json())
        return replace(build, plan=plan)

    def restore(self, build: Build) -> Build:
        """Read the plan of an earlier run."""
        plan = Plan.from_json(build.folder.read_json(self.saves[0]))
        plan.check(build.traced)
        return replace(build, plan=plan)

    def document(self, build: Build) -> str:
        """MACs before and after."""
        plan = build.planned
        cut = sum(build.traced.group(g.id).changes_statistics and len(g.keep) < g.size for g in plan.groups)
        statistics = f"; {cut} of the groups are averaged over by a normalisation" if cut else ""
        return (
            f"{plan.macs_before / 1e6:.2f} -> {plan.macs_after / 1e6:.2f} M MACs "
            f"({plan.macs_after / plan.macs_before:.3f}), {plan.scope}, widths in steps of {plan.step}{statistics}"
        )
