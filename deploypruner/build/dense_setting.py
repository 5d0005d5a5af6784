"""Threads and instructions of a build, found out on its dense model."""

from __future__ import annotations

from dataclasses import replace

from deploypruner.build.artifacts import with_dense
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.open_setting import counts_to_try, try_settings
from deploypruner.build.state import Build
from deploypruner.build.timed import best_files
from deploypruner.errors import RecipeError
from deploypruner.measure import Job
from deploypruner.recipe.sections import OPEN
from deploypruner.records import Precision
from deploypruner.runtime import runtimes


def settled(build: Build) -> Build:
    """The build with what its dense model is fastest with, where the recipe or a runtime leaves something open.

    Raises:
        RecipeError: The number of threads is open, and no measured runtime opens ONNX.
        MeasureError: The dense model cannot be timed.
    """
    measure = build.recipe.measure
    precision: Precision = "fp32" if measure.precision == "fp32" else "int8"  # int8 where that is open
    has_choice = any(
        len(runtimes.get(name).environments(precision, build.clock.machine.target)) > 1
        for name in build.measured_runtimes
    )
    if measure.threads != OPEN and not has_choice:
        return build
    build.say("trying numbers of threads" if measure.threads == OPEN else "trying instruction sets")
    tried = try_settings(
        _dense_jobs(build, precision),
        counts_to_try(build.clock.machine) if measure.threads == OPEN else (measure.threads,),
        feeds=timing_feeds(build),
        clock=build.clock,
        more={"seed": build.recipe.seed},
    )
    return replace(build, tried=tried)


def _dense_jobs(build: Build, precision: Precision) -> list[Job]:
    """The dense model in the precision it is to have, on every runtime that opens ONNX."""
    dense = [artifact for artifact in with_dense(build).artifacts if artifact.name == f"dense {precision}"]
    jobs = [(artifact, name) for name in build.measured_runtimes for artifact in best_files(dense, name)]
    if not jobs:
        asked = ", ".join(build.measured_runtimes)
        raise RecipeError(
            f"--threads {OPEN} tries the dense model as ONNX, which {asked} does not open",
            hint="name --runtime openvino or onnxruntime as well, or give a number of threads",
        )
    return jobs
