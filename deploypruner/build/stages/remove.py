"""remove: a smaller module, and the proof that nothing else changed."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.build.register import stages
from deploypruner.build.stage import Stage
from deploypruner.build.state import Build
from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph.execute.parameter_override import holding


@stages.register("remove")
class Remove(Stage):
    """Remove what the plan does not keep; masked and removed must agree."""

    name: ClassVar[str] = "remove"
    needs: ClassVar[tuple[str, ...]] = ("learn",)
    fatal: ClassVar[bool] = True

    def run(self, build: Build) -> Build:
        """Give the pruned module and its proof, both with the weights that were learned, where there are any."""
        with holding(build.traced, build.learned):
            module, checks = remove_and_prove(build.traced, build.planned)
        return replace(build, module=module, checks=build.checks + checks)

    def document(self, build: Build) -> str:
        """The proof in one line."""
        proof = [c for c in build.checks if c.name.startswith("masked")]
        worst = next((c for c in proof if not c.passed), max(proof, key=lambda c: c.max_abs_diff))
        return f"{worst.name}: max |difference| {worst.max_abs_diff:.1e}, allowed {worst.tolerance:.0e}"
