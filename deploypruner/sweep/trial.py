"""One recipe realised, recovered and judged, by the very stages of `compile`; and what a trial is known by."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deploypruner import __version__
from deploypruner.build.channels import choosing_scores
from deploypruner.build.criterion import normalizer_name
from deploypruner.build.evaluate import module_agreement
from deploypruner.build.folder import BuildFolder
from deploypruner.build.stage import chain
from deploypruner.build.state import Build
from deploypruner.channels.allocate import allocate
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import require
from deploypruner.errors import DeployPrunerError
from deploypruner.logbook import Logbook
from deploypruner.progress import SilentProgress
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.reading import flat, overlay
from deploypruner.records import ACCURACY
from deploypruner.sources.data import content_fingerprint
from deploypruner.sweep.trial_record import FORMAT, SweepTrial, TrialResult

# What a trial is made of; the plan is given, so that `allocate` has no say. A look before any training leaves out the
# one stage of them that trains beside recovery.
_BEFORE, _FIRST, _LAST, _TRAINS = ("load", "trace", "score"), "learn", "recover", "learn"


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a sweep share.

    Args:
        build: Loaded, traced and scored.
        scores: Group id -> `[C]`, the order in which channels stay; see `build.channels.choosing_scores`.
        content: Name, numbers of samples and fingerprint of the data; a factory's address instead, nothing of a
            loader.
    """

    build: Build
    scores: Mapping[str, Tensor]
    content: str

    @staticmethod
    def of(build: Build) -> TrialContext:
        """Of a build after its first stages."""
        given = build.given.data if build.given.data is not None else build.recipe.data.source
        data = build.data
        about = "" if data is None else f"{data.name} {data.train.samples} {data.val.samples}"
        known = content_fingerprint(given) or (given if isinstance(given, str) else "")
        return TrialContext(build, choosing_scores(build), f"{about} {known}".strip())


def identity_of(context: TrialContext, trial: SweepTrial) -> str:
    """Sixteen hex digits of the hash of everything that decides a trial's result.

    That is the model's weights, the content of the data wherever it lies, the keys of the recipe that its stages
    read, its widths, seed and epochs, and the versions of this package, torch and the processor's architecture.
    """
    return hashlib.sha256(json.dumps(_decisive(context, trial), sort_keys=True, default=str).encode()).hexdigest()[
        :16
    ]


def _decisive(context: TrialContext, trial: SweepTrial) -> dict[str, Any]:
    build = context.build
    stages = [stage for stage in chain() if stage.name in (*_BEFORE, *_names(trial))]
    read = {key: value for key, value in flat(build.recipe).items() if any(s.depends_on(key) for s in stages)}
    for key in (
        "seed",
        "recover.epochs",
        "prune.macs",
        "prune.speedup",
        "prune.latency",
        "model.source",
        "data.source",
    ):
        read.pop(key, None)
    return {
        "format": FORMAT,
        "versions": [__version__, torch.__version__, platform.machine()],
        "model": build.sha256,
        "data": context.content,
        "recipe": {key: str(value) for key, value in read.items()},
        "scored by": [build.criterion, build.recipe.seed],
        "widths": dict(sorted(trial.widths.items())),
        "seed": trial.seed,
        "epochs": trial.epochs,
    }


def _names(trial: SweepTrial) -> list[str]:
    """The stages of a trial, in their order."""
    names = [stage.name for stage in chain()]
    names = names[names.index(_FIRST) : names.index(_LAST) + 1]
    return names if trial.epochs else [name for name in names if name != _TRAINS]


def plan_of(context: TrialContext, widths: Mapping[str, int]) -> Plan:
    """The plan of a recipe, as `compile` makes it from a recipe file with these cuts."""
    build, recipe = context.build, context.build.recipe.prune
    return allocate(
        build.traced,
        context.scores,
        Budget(macs=1.0),
        criterion=build.criterion,
        scope="recipe",
        normalizer=normalizer_name(recipe, build.criterion),
        step=recipe.step,
        constraints=recipe.constraints,
        widths=dict(widths),
    )


def run_trial(context: TrialContext, trial: SweepTrial, *, work: Path) -> TrialResult:
    """Cut, recover and judge; the same arguments give the same result on one machine and thread count.

    Args:
        context: What trials share.
        trial: What to try.
        work: Folder for what stages write on the way; emptied first, and deleted in the end.

    Returns:
        The result; of what training or the data refuse, the reason.
    """
    begun = time.monotonic()
    shutil.rmtree(work, ignore_errors=True)
    try:
        build = _realised(context, trial, work)
        quality, dense, found, drop = _judged(build)
        if not math.isfinite(drop):
            return TrialResult.failed(f"{quality} is not a number after recovery", time.monotonic() - begun)
        plan = build.planned
        return TrialResult(
            *(quality, dense, found, drop, plan.macs_after, plan.params_after, time.monotonic() - begun)
        )
    except DeployPrunerError as error:
        return TrialResult.failed(error.message, time.monotonic() - begun)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _realised(context: TrialContext, trial: SweepTrial, work: Path) -> Build:
    """The build after its last stage of a trial."""
    recipe, given = context.build.recipe, context.build.given
    if not trial.epochs:
        recipe, given = overlay(recipe, {"recover": {"train": ""}}), replace(given, train=None)
    recipe = overlay(recipe, {"seed": trial.seed, "recover": {"epochs": trial.epochs}})
    build = replace(
        context.build,
        plan=plan_of(context, trial.widths),
        recipe=recipe,
        given=given,
        folder=BuildFolder(work, "trial"),
        progress=SilentProgress(),
        log=Logbook(),
        say=lambda line: None,
    )
    names = _names(trial)
    for stage_class in chain():
        if stage_class.name in names:
            stage = stage_class()
            build = stage.run(build)
            if stage.fatal:
                require(build.checks)
            stage.validate(build)
    return build


def _judged(build: Build) -> tuple[str, float, float, float]:
    """What is counted, of the dense model, of this one, and the points lost."""
    done = build.recovery
    if done.accuracy_dense is not None and done.accuracy_recovered is not None:
        metric = done.metric or ACCURACY
        lost = metric.lost(done.accuracy_dense, done.accuracy_recovered)
        return metric.name, done.accuracy_dense, done.accuracy_recovered, lost
    gap = module_agreement(build, build.compiled)
    return f"{gap.kind} agreement with the dense model", gap.dense, gap.found, gap.lost
