"""threads: how many the model is to run with, where that was left open."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from deploypruner.build.artifacts import with_dense
from deploypruner.build.feeds import timing_feeds
from deploypruner.build.open_threads import ThreadsTried, try_threads
from deploypruner.build.register import stages
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.build.timed import best_files
from deploypruner.errors import RecipeError
from deploypruner.measure import Job
from deploypruner.recipe.sections import OPEN


@stages.register("threads")
class Threads(Stage):
    """Try the dense model with every number of threads, where the recipe leaves it open."""

    name: ClassVar[str] = "threads"
    needs: ClassVar[tuple[str, ...]] = ("trace",)
    reads: ClassVar[tuple[str, ...]] = (
        *(f"measure.{name}" for name in ("threads", "runtimes", "allow_bf16", "precision")),
        *("quantize", "target", "seed"),
    )
    # A build that goes on with a budget for another precision keeps the number, and so all that was timed with it.
    outlives: ClassVar[tuple[str, ...]] = ("measure.precision",)
    saves: ClassVar[tuple[str, ...]] = (stage_file("threads.json"),)

    def run(self, build: Build) -> Build:
        """Give what was tried, and save it."""
        if build.recipe.measure.threads != OPEN:
            return build
        build.say("trying numbers of threads")
        tried = try_threads(
            _dense_jobs(build), feeds=timing_feeds(build), clock=build.clock, more={"seed": build.recipe.seed}
        )
        build.folder.write_json(self.saves[0], tried.to_json())
        return replace(build, tried=tried)

    def restore(self, build: Build) -> Build:
        """Read what was tried."""
        if build.recipe.measure.threads != OPEN:
            return build
        return replace(build, tried=ThreadsTried.from_json(build.folder.read_json(self.saves[0])))

    def document(self, build: Build) -> str | None:
        """The number and the times; nothing where the user gave one."""
        return None if build.tried is None else build.tried.sentence


def _dense_jobs(build: Build) -> list[Job]:
    """The dense model in the precision it is to have, int8 where that is open, on every runtime that opens ONNX."""
    wanted = "fp32" if build.recipe.measure.precision == "fp32" else "int8"
    dense = [artifact for artifact in with_dense(build).artifacts if artifact.name == f"dense {wanted}"]
    jobs = [(artifact, name) for name in build.measured_runtimes for artifact in best_files(dense, name)]
    if not jobs:
        asked = ", ".join(build.measured_runtimes)
        raise RecipeError(
            f"--threads {OPEN} tries the dense model as ONNX, which {asked} does not open",
            hint="name --runtime openvino or onnxruntime as well, or give a number of threads",
        )
    return jobs
