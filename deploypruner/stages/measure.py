"""measure: accuracy and latency of every artifact on every runtime, side by side."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from deploypruner.errors import InputError
from deploypruner.graph.inputs import batch_size
from deploypruner.measure import (
    environment,
    evaluate,
    find_warnings,
    make_rows,
    outputs,
    time_artifacts,
    write_timing,
)
from deploypruner.measure.baselines import Job
from deploypruner.records import Artifact, Quality
from deploypruner.runtime import runtimes
from deploypruner.stages import Build, Feeds, Stage
from deploypruner.stages.quantize import noise_like
from deploypruner.stages.verify import verification_feeds

# Validation inputs are decoded once and shared by all artifacts, so they have to fit into memory.
_MEMORY_BYTES = 1 << 30
_BATCH = 16
_NOISE_SAMPLES = 64

Samples = list[tuple[Feeds, np.ndarray | None]]


class Measure(Stage):
    """Evaluate each artifact on validation data, then time all of them in interleaved rounds."""

    name: ClassVar[str] = "measure"

    def run(self, build: Build) -> Build:
        """Give rows, raw timings and warnings."""
        recipe = build.recipe.measure
        jobs = make_jobs(build.artifacts, recipe.runtimes or tuple(runtimes))
        machine = environment()
        samples = validation_samples(build)
        qualities = _qualities(build, jobs, samples)
        feeds = [array[:1] for array in verification_feeds(build)[0]] if build.traced.dynamic_batch else None
        try:
            measured = time_artifacts(
                jobs,
                threads=recipe.threads,
                budget_s=recipe.seconds,
                seed=build.recipe.seed,
                feeds=feeds,
                progress=_Percent(build),
            )
        finally:
            build.progress.close()
        for timing in measured.timings:
            name = f"{timing.artifact.name.replace(' ', '-')}.{timing.artifact.format}.{timing.runtime}.json"
            with build.folder.writing(f"measurements/{name}") as path:
                write_timing(timing, path)
        rows = make_rows(measured.timings, qualities, floor=measured.floor, seed=build.recipe.seed)
        warnings = find_warnings(measured.timings, machine, settled=measured.settled, floor=measured.floor)
        return replace(
            build,
            timings=measured.timings,
            rows=tuple(rows),
            remarks=(*build.remarks, *warnings),
            facts={**build.facts, "environment": machine, "noise_floor": measured.floor},
        )

    def document(self, build: Build) -> str:
        """How much was measured."""
        samples = sum(t.samples_ns.size for t in build.timings)
        return f"{len(build.rows)} rows, {samples:,} timed inferences, noise floor {build.facts['noise_floor']:.1%}"


def make_jobs(artifacts: Iterable[Artifact], names: Iterable[str]) -> list[Job]:
    """Every artifact on every runtime, the baseline first; a runtime's own format is preferred to ONNX.

    Raises:
        InputError: A runtime that opens none of the files.
    """
    jobs: list[Job] = []
    for name in names:
        suffixes = runtimes.get(name).suffixes
        best: dict[str, Artifact] = {}
        for artifact in artifacts:
            if artifact.path.suffix in suffixes and (artifact.name not in best or artifact.format != "onnx"):
                best[artifact.name] = artifact
        if not best:
            raise InputError(f"runtime '{name}' opens none of the build's files", hint="choose another --runtime")
        jobs += [(artifact, name) for artifact in best.values()]
    return jobs


def validation_samples(build: Build) -> Samples:
    """Inputs and labels that accuracy and agreement are computed on; noise without data."""
    if build.data is None:
        generator = torch.Generator().manual_seed(build.recipe.seed + 1)
        example = build.traced.example_inputs
        batch = _BATCH if build.traced.dynamic_batch else batch_size(example)
        return [(noise_like(example, batch, generator), None) for _ in range(_NOISE_SAMPLES // batch or 1)]
    most, seen = build.recipe.measure.samples, 0
    samples: Samples = []
    total_bytes = 0
    whole = build.data.val.samples is not None and build.data.val.samples <= most
    for inputs, labels in build.data.val.epoch(batch_size=_BATCH, seed=build.recipe.seed, shuffle=not whole):
        feeds = [np.ascontiguousarray(t.numpy()) for t in inputs]
        total_bytes += sum(array.nbytes for array in feeds)
        if seen >= most or total_bytes > _MEMORY_BYTES:
            break
        samples.append((feeds, None if labels is None else labels.numpy()))
        seen += len(feeds[0])
    return samples


def _qualities(build: Build, jobs: list[Job], samples: Samples) -> list[Quality]:
    """Accuracy of every job, and agreement with the dense fp32 model on the first runtime."""
    build.progress.start(len(jobs) + 1, "evaluate")
    try:
        artifact, runtime = jobs[0]
        reference = outputs(_open(artifact, runtime), samples)
        build.progress.advance()
        found = []
        for artifact, runtime in jobs:
            found.append(evaluate(_open(artifact, runtime), samples, reference=reference))
            build.progress.advance()
        return found
    finally:
        build.progress.close()


def _open(artifact: Artifact, runtime: str) -> Any:
    return runtimes.get(runtime)().open(artifact.path, threads=torch.get_num_threads())


class _Percent:
    """Passes the protocol's fraction on to a progress bar of 100 steps."""

    def __init__(self, build: Build) -> None:
        self._progress = build.progress
        self._shown = 0
        self._progress.start(100, "measure")

    def __call__(self, fraction: float, text: str) -> None:
        now = min(100, int(100 * fraction))
        self._progress.advance(now - self._shown)
        self._shown = now
