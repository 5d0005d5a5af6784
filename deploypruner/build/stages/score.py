"""score: one number per removable channel."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from safetensors.torch import load_file, save_file

from deploypruner.build.criterion import criterion_name, make_criterion
from deploypruner.build.feeds import training_batches
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.channels.criteria import Needs
from deploypruner.channels.statistics import score_groups


@stages.register("score")
class Score(Stage):
    """Ask the criterion how much every channel matters."""

    name: ClassVar[str] = "score"
    needs: ClassVar[tuple[str, ...]] = ("trace",)
    reads: ClassVar[tuple[str, ...]] = (
        *(f"prune.{name}" for name in ("criterion", "parameters", "samples", "batch_size")),
        "seed",
    )
    saves: ClassVar[tuple[str, ...]] = (stage_file("scores.safetensors"),)

    def run(self, build: Build) -> Build:
        """Give scores and save them."""
        recipe = build.recipe.prune
        name = criterion_name(recipe, has_data=build.data is not None)
        criterion = make_criterion(name, recipe.parameters)
        batches = None
        if build.data is not None and criterion.needs != Needs.WEIGHTS:
            steps = max(1, recipe.samples // recipe.batch_size)
            steps = min(steps, criterion.effort.batches or steps)
            batches = training_batches(build, batch_size=recipe.batch_size, count=steps)
            build.progress.start(steps, f"score ({name})")
        try:
            scores = score_groups(
                build.traced,
                criterion,
                batches,
                seed=build.recipe.seed,
                on_batch=build.progress.advance,
                loss=build.loss,
            )
        finally:
            build.progress.close()
        with build.folder.writing(self.saves[0]) as path:
            save_file({group_id: score.contiguous() for group_id, score in scores.items()}, path)
        return replace(build, scores=scores, criterion=name)

    def restore(self, build: Build) -> Build:
        """Read the scores of an earlier run."""
        scores = load_file(build.folder.path(self.saves[0]))
        name = criterion_name(build.recipe.prune, has_data=build.data is not None)
        return replace(build, scores=scores, criterion=name)

    def document(self, build: Build) -> str:
        """The criterion."""
        return build.criterion
