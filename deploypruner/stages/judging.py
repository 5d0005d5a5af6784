"""The judge of a build: training samples for repairing plans, and others for judging them."""

from __future__ import annotations

from deploypruner.search.judge import Judge
from deploypruner.stages import Build
from deploypruner.stages.score import training_batches

_BATCH = 64


def make_judge(build: Build) -> Judge:
    """Reconstructs and judges plans on different training samples; on the same ones where there are too few.

    Samples to reconstruct on come as training sees them, those to judge on as they are.
    """
    recipe, recover = build.recipe.search, build.recipe.recover
    solved, held_out = (-(-count // _BATCH) for count in (recover.reconstruct_samples, recipe.held_out))
    plain = list(training_batches(build, batch_size=_BATCH, count=solved + held_out))
    if len(plain) <= solved:
        solved = len(plain) // 2
    if not solved:
        build.say("remark: plans are judged on the samples they are reconstructed on, there are too few for both")
    augment = recover.settings.augment
    solving = training_batches(build, batch_size=_BATCH, count=solved or 1, augment=augment)
    return Judge(build.traced, solving=list(solving), held_out=plain[solved:])
