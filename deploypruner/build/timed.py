"""What was timed in a build and how it is kept: files on runtimes, raw samples, and what was said about the run."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploypruner.build.folder import BuildFolder
from deploypruner.errors import InputError
from deploypruner.measure import Job, Measured, write_timing
from deploypruner.records import Artifact, Environment, Timing
from deploypruner.runtime import Array, opens, runtimes
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.target import Target

RUN = "measurements/run.json"
"""Conditions of the measurement and what was said about it."""

INPUTS = "measurements/inputs.npz"
"""What artifacts were called with; arr_0, arr_1, ... in the order of the inputs."""


SPARSE = "sparse int8"
"""Name of the artifact whose zeros cost nothing; its environment is its own."""


def in_environments(jobs: Iterable[Job], environments: Mapping[str, Environment]) -> list[Job]:
    """Jobs with every int8 file in the environment that its runtime is fastest in, and float files in none.

    Args:
        jobs: The files.
        environments: Runtime -> variables of the process.
    """
    return [
        job
        if job[0].name == SPARSE
        else (replace(job[0], environment=environments.get(job[1], ()) if job[0].precision == "int8" else ()), job[1])
        for job in jobs
    ]


def make_jobs(artifacts: Iterable[Artifact], names: Iterable[str]) -> list[Job]:
    """Every artifact on every runtime, the baseline first; a runtime's own format and file is preferred to ONNX.

    Raises:
        InputError: A runtime that opens none of the files.
    """
    artifacts, jobs = list(artifacts), list[Job]()
    for name in names:
        best = best_files(artifacts, name)
        if not best:
            raise InputError(f"runtime '{name}' opens none of the build's files", hint="choose another --runtime")
        jobs += [(artifact, name) for artifact in best]
    return jobs


def best_files(artifacts: Iterable[Artifact], runtime: str) -> list[Artifact]:
    """What a runtime opens, one of each name: its own format and file rather than ONNX for all."""
    best: dict[str, Artifact] = {}
    for artifact in artifacts:
        ours = artifact.runtime in ("", runtime) and opens(runtimes.get(runtime), artifact.path)
        if ours and (artifact.name not in best or artifact.format != "onnx" or artifact.runtime):
            best[artifact.name] = artifact
    return list(best.values())


def no_bf16(allowed: bool, target: Target) -> str:
    """That a permission for bf16 had no effect; "" where it had one, or was not given."""
    why = runtimes.get(OpenVino.in_bf16).lacking(target) if allowed else ""
    return f"--allow-bf16 changed nothing: {why}; all that is float ran in f32" if why else ""


def longer(root: Path, seconds: float) -> str:
    """The command that measures a build for longer than so many seconds."""
    return f"`{shlex.join(['deploypruner', 'measure', str(root), '--seconds', f'{max(60.0, 3 * seconds):.0f}'])}`"


def timing_files(folder: BuildFolder) -> list[str]:
    """Names of the files with raw samples."""
    ours = (name for name in folder.own() if name.startswith("measurements/") and name.endswith(".json"))
    return sorted(name for name in ours if name != RUN)


def keep_run(folder: BuildFolder, measured: Measured, *, seconds: float, warnings: Sequence[str]) -> None:
    """Write the samples in place of earlier ones of the same runtimes, and what was said about the run.

    Args:
        folder: Of the build.
        measured: The run.
        seconds: That it was given.
        warnings: About it.
    """
    written = {file_name(timing) for timing in measured.timings}
    timed = {timing.runtime for timing in measured.timings}
    for timing in measured.timings:
        with folder.writing(file_name(timing)) as path:
            write_timing(replace(timing, artifact=_inside(timing.artifact, folder)), path)
    for name in timing_files(folder):
        if name not in written and name.rsplit(".", 2)[1] in timed:
            folder.discard(name)
    about = {"seconds": seconds, "noise_floor": measured.floor, "settled": measured.settled}
    folder.write_json(RUN, {**about, "warnings": list(warnings), "conditions": measured.conditions.as_json()})


def keep_inputs(folder: BuildFolder, feeds: Sequence[Array]) -> None:
    """Keep what artifacts are called with, so that another measurement calls them with the same."""
    with folder.writing(INPUTS) as path:
        np.savez(path, *feeds)


def file_name(timing: Timing) -> str:
    """Where the samples of a row are."""
    artifact = timing.artifact
    return f"measurements/{artifact.name.replace(' ', '-')}.{artifact.format}.{timing.runtime}.json"


def _inside(artifact: Artifact, folder: BuildFolder) -> Artifact:
    """With its path within the folder, which may be moved."""
    path = artifact.path
    return replace(artifact, path=path.relative_to(folder.root)) if path.is_relative_to(folder.root) else artifact
