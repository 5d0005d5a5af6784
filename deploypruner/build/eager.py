"""The dense model in torch eager: what the user runs today, beside everything that was made of it."""

from __future__ import annotations

import time

import torch

from deploypruner.build.state import Build
from deploypruner.graph.inputs import call
from deploypruner.measure.baselines import Job
from deploypruner.records import Artifact
from deploypruner.report.gains import EAGER

_FILE = "dense.pt2"
# Part of --seconds that one call may take: rounds of it take a fifth of them then.
_CHEAP = 1 / 200


def eager_job(build: Build) -> tuple[Job | None, str]:
    """The job that times it, and where there is none, why: one sentence, "" where the user named the runtimes.

    It is timed where no runtime was named, the model has a torch.export program, and one call is short beside the
    time there is for measuring.
    """
    if build.recipe.measure.runtimes:
        return None, ""
    if build.clock.machine.elsewhere:
        return None, f"torch eager is not timed: {build.clock.machine.name} is another machine, which needs no torch"
    if not build.folder.has(_FILE):
        return None, "torch eager is not timed: torch.export cannot trace this model as a whole"
    seconds, most = _one_call(build), _CHEAP * build.recipe.measure.seconds
    if seconds > most:
        return None, (
            f"torch eager is not timed: one call takes {1000 * seconds:.0f} ms, more than {1000 * most:.0f}; name "
            "--runtime torch, or give more --seconds, to have it"
        )
    artifact = Artifact("dense fp32", build.folder.path(_FILE), "pt2", "fp32", "dense", build.traced.cost())
    return (artifact, EAGER), ""


def _one_call(build: Build) -> float:
    """Seconds of one call, the quicker of two, on the threads that this process has."""
    found = []
    with torch.inference_mode():
        for _ in range(2):
            begun = time.perf_counter()
            call(build.traced.module, build.traced.example_inputs)
            found.append(time.perf_counter() - begun)
    return min(found)
