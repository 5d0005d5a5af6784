"""Are the samples like those of the training? Asked wherever a model and its data first meet, and said at once."""

from __future__ import annotations

from itertools import islice

import numpy as np
import onnx
import torch
from torch import Tensor

from deploypruner.build.answering import Runner
from deploypruner.build.state import Feeds
from deploypruner.quantize.expected_inputs import doubt, first_norm_of_file, first_norm_of_module
from deploypruner.sources.batches import Data

# Samples that are looked at.
_SAMPLES = 32


def doubted_data(runner: Runner, data: Data, *, seed: int) -> tuple[str, ...]:
    """Whether training samples are such as the model's first batch norm has learned from; () where they are.

    Args:
        runner: Of the dense model.
        data: That belongs to it.
        seed: Of the order of samples.
    """
    seen: list[Tensor] = []
    epoch = data.train.epoch(batch_size=_SAMPLES, seed=seed, shuffle=True)
    for inputs, _ in islice(epoch, _SAMPLES):  # a loader has a batch size of its own
        seen = list(map(torch.cat, zip(seen, inputs, strict=True))) if seen else list(inputs)
        if len(seen[0]) >= _SAMPLES:
            break
    if not seen:
        return ()
    return doubted_samples(runner, seen)


def doubted_samples(runner: Runner, inputs: list[Tensor]) -> tuple[str, ...]:
    """The same of one batch."""
    norm = first_norm_of_module(runner.module, lambda: list(runner.answers([(tuple(inputs), None)])))
    return tuple(filter(None, (doubt(norm, [np.asarray(x.numpy()) for x in inputs]),)))


def doubted_file(model: onnx.ModelProto, batch: Feeds) -> tuple[str, ...]:
    """The same of an ONNX file; most files have their batch norms folded into other layers, which says nothing."""
    return tuple(filter(None, (doubt(first_norm_of_file(model, batch), batch),)))
