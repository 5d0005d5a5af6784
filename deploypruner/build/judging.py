"""The judge of a build: training samples for repairing plans, and others for judging them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from deploypruner.build.answering import as_numpy
from deploypruner.build.feeds import evaluated_at_once, training_batches
from deploypruner.build.stage import stage_file
from deploypruner.build.state import Build
from deploypruner.graph import Keep
from deploypruner.measure.quality import judge_outputs
from deploypruner.records import Quality
from deploypruner.search.judge import Judge, Verdict
from deploypruner.train.batches import FirstBatches
from deploypruner.train.finetune import finetune
from deploypruner.train.reconstruct import can_reconstruct

_BATCH = 64
# Of a brief training; fewer samples than this many steps use are not worth one.
_STEPS = 40


def make_judge(build: Build, *, remark: bool = False) -> Judge:
    """Reconstructs and judges plans on different training samples; on the same ones where there are too few.

    Samples to reconstruct on come as training sees them, those to judge on as they are.

    Args:
        build: With data.
        remark: Tell the user where there are too few.
    """
    recipe, recover = build.recipe.search, build.recipe.recover
    # Where nothing can be solved, batch norm is measured on the batches instead, which wants large ones.
    batch = evaluated_at_once(build, _BATCH) if can_reconstruct(build.traced) else _BATCH
    solved, held_out = (-(-count // batch) for count in (recover.reconstruct_samples, recipe.held_out))
    plain = list(training_batches(build, batch_size=batch, count=solved + held_out))
    if len(plain) <= solved:
        solved = len(plain) // 2
    if not solved and remark:
        build.say("remark: plans are judged on the samples they are reconstructed on, there are too few for both")
    augment = recover.settings.augment
    solving = training_batches(build, batch_size=batch, count=solved or 1, augment=augment)
    file = build.folder.claim(stage_file("looks.json"))
    return Judge(
        build.traced,
        solving=list(solving),
        held_out=plain[solved:],
        loss=build.loss,
        file=file,
        quality=partial(_quality, build) if build.tasks else None,
    )


def _quality(
    build: Build, found: Sequence[list[Tensor]], dense: Sequence[list[Tensor]], labels: Sequence[Any]
) -> Quality:
    """By the tasks of the outputs, or the user's own metric, as the finished artifacts will be judged."""
    ours, theirs = ([[as_numpy(output) for output in batch] for batch in batches] for batches in (found, dense))
    known = build.tasks if len(ours[0]) == len(build.tasks) else None  # outputs that are no floats are left out
    names = [task.output for task in known or ()] or [f"output {number}" for number in range(len(ours[0]))]
    given = [as_numpy(target) for target in labels]
    metric = build.metric if all(target is not None for target in given) else None
    return judge_outputs(ours, given, names, reference=theirs, tasks=known, metric=metric)


def trained_briefly(build: Build, judge: Judge, keep: Keep) -> Verdict:
    """Judge a plan after it was repaired and trained for a few steps, as recovery will."""
    assert build.data is not None, "there is no data"
    train = FirstBatches(build.data.train, _STEPS)
    settings = replace(build.recipe.recover.settings, epochs=1, seed=build.recipe.seed, patience=0, ema=0.0)

    def found() -> Verdict:
        module = build.traced.cut(build.traced.removed(keep)).eval()
        judge.repair(module, keep)
        finetune(module, build.traced.module, train, settings, loss=build.loss)
        return judge.verdict(module)

    return judge.remembered(keep, f"trained for {_STEPS} steps, {settings}", found)


def can_train_briefly(build: Build) -> bool:
    """Is there a built-in training to come, and enough to train on?"""
    recipe = build.recipe.recover
    if build.data is None or not recipe.trains or recipe.train or build.given.train is not None:
        return False
    samples = build.data.train.samples
    return samples is not None and samples >= _STEPS * recipe.settings.batch_size
