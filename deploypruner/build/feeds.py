"""Samples of the build's data in the forms that stages take: to train, calibrate, prove and time with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from deploypruner.build.state import Build, Feeds
from deploypruner.graph.inputs import batch_size, noise_like, tensors
from deploypruner.train.modes import device_of

_CALIBRATION_BATCH = 8
# Numbers in the inputs of a batch that is evaluated, at most. Activations of larger ones leave the caches, and the
# system hands out memory for each anew.
_NUMBERS = 2**20
_PROOF_BATCHES, _PROOF_BATCH = 2, 3


def training_batches(
    build: Build, *, batch_size: int, count: int, augment: bool = False
) -> Iterator[tuple[Any, ...]]:
    """The first `count` batches of one seeded pass over the training data."""
    assert build.data is not None, "there is no data"
    epoch = build.data.train.epoch(batch_size=batch_size, seed=build.recipe.seed, shuffle=True, augment=augment)
    return islice(epoch, count)


def evaluated_at_once(build: Build, most: int) -> int:
    """Samples in a batch that is evaluated and not trained on: `most`, on a CPU down to 2 of large images.

    EfficientNet-Lite0 at 224 takes 24 to 32 ms an image in batches of 4 to 16, 69 of 32 and 92 of 64 (torch 2.13, one
    core of a Zen 4, benchmarks/batch_sizes.py).
    """
    if device_of(build.traced.module).type != "cpu":
        return most
    example = build.traced.example_inputs
    numbers = sum(tensor.numel() for tensor in tensors(example)) // batch_size(example)
    return max(2, min(most, _NUMBERS // max(1, numbers)))


def calibration_feeds(build: Build) -> Iterator[Feeds]:
    """Training samples without augmentation; seeded noise where there is no data."""
    samples = build.recipe.quantize.samples
    example = build.traced.example_inputs
    batch = _CALIBRATION_BATCH if build.traced.dynamic_batch else batch_size(example)
    count = max(1, samples // batch)
    if build.data is None:
        # Timing depends on the graph alone; 32 samples of noise are as good as many.
        generator = torch.Generator().manual_seed(build.recipe.seed)
        for _ in range(min(count, max(1, 32 // batch))):
            yield noise_like(example, batch, generator)
        return
    for inputs, _ in training_batches(build, batch_size=batch, count=count):
        if len(inputs[0]) == batch or build.traced.dynamic_batch:
            yield [np.asarray(t.numpy(), order="C") for t in inputs]


def verification_feeds(build: Build) -> list[Feeds]:
    """A few validation batches; seeded noise where there is no data."""
    graph = build.traced
    batch = _PROOF_BATCH if graph.dynamic_batch else batch_size(graph.example_inputs)
    if build.data is not None:
        epoch = build.data.val.epoch(batch_size=batch, seed=build.recipe.seed, shuffle=True)
        # A loader has a batch size of its own.
        pieces = (
            [np.asarray(t[start : start + batch].numpy(), order="C") for t in inputs]
            for inputs, _ in epoch
            for start in range(0, len(inputs[0]) - batch + 1, batch)
        )
        found = list(islice(pieces, _PROOF_BATCHES))
        if found:
            return found
    generator = torch.Generator().manual_seed(build.recipe.seed)
    return [noise_like(graph.example_inputs, batch, generator) for _ in range(_PROOF_BATCHES)]


def timing_feeds(build: Build) -> Feeds | None:
    """One real sample of the example's size, None where artifacts take only the example's batch and size."""
    graph = build.traced
    if graph.dynamic_batch:
        return [array[:1] for array in verification_feeds(build)[0]]
    return verification_feeds(build)[0] if graph.open_axes else None
