"""What accuracy and agreement are computed on, and what is fed to an artifact that is timed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from deploypruner.graph.inputs import batch_size, noise_like
from deploypruner.measure import Job, evaluate, outputs
from deploypruner.records import Artifact, Quality
from deploypruner.runtime import runtimes
from deploypruner.stages import Build, Feeds
from deploypruner.stages.verify import verification_feeds

# Validation inputs are decoded once and shared by all artifacts, so they have to fit into memory.
_MEMORY_BYTES = 1 << 30
_BATCH = 16
_NOISE_SAMPLES = 64

Samples = list[tuple[Feeds, np.ndarray | None]]


def timing_feeds(build: Build) -> Feeds | None:
    """One real sample, None where artifacts take only the example's batch."""
    return [array[:1] for array in verification_feeds(build)[0]] if build.traced.dynamic_batch else None


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


def judge(build: Build, jobs: Sequence[Job], samples: Samples) -> list[Quality]:
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
