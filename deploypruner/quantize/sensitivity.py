"""What int8 in one layer alone does to the model's outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

import numpy as np

from deploypruner.quantize.calibrate import Feeds, sample_count
from deploypruner.quantize.static import Calibrated, write_qdq
from deploypruner.runtime import Array
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.scratch import scratch
from deploypruner.tasks.recognise import OutputTask

_SMALLEST = 1e-12
# Samples that errors of layers are seen on: a few dozen.
_SAMPLES = 24


def first_samples(batches: Iterable[Feeds]) -> list[Feeds]:
    """The first batches, until they hold a few dozen samples."""
    found: list[Feeds] = []
    for feeds in batches:
        found.append(feeds)
        if sum(map(sample_count, found)) >= _SAMPLES:
            break
    return found


def class_outputs(tasks: Sequence[OutputTask]) -> tuple[int, ...]:
    """Numbers of the outputs that are scores of classes."""
    return tuple(number for number, output in enumerate(tasks) if output.task == "classification")


def sensitivities(
    fp32: Path,
    calibrated: Calibrated,
    feeds: Sequence[Feeds],
    *,
    classes: Collection[int] = (),
    layers: Sequence[str] | None = None,
    reduce_range: bool = False,
    each: Callable[[str], None] = lambda layer: None,
) -> dict[str, float]:
    """Error at the outputs when one layer alone is int8, its weights and its input; of several outputs the largest.

    Small errors of different layers are about independent, so they add up: of a mix, the sum over its int8 layers.

    Args:
        fp32: The float file.
        calibrated: The same model with its ranges.
        feeds: Batches of inputs.
        classes: Numbers of the outputs that are scores of classes, see `output_divergence`.
        layers: Which; None for every one that can be int8.
        reduce_range: 7-bit weights.
        each: Called after every layer.

    Returns:
        Layer -> error.

    Raises:
        InputError: The model cannot be run on `feeds`.
    """
    every = calibrated.layers
    found = {}
    reference = _answers(fp32, feeds)
    with scratch() as folder:
        alone = folder / "alone.onnx"
        for layer in every if layers is None else layers:
            others = {name: "" for name in every if name != layer}
            write_qdq(calibrated, alone, reduce_range=reduce_range, keep_float=others, layers_alone=True)
            pairs = zip(_answers(alone, feeds), reference, strict=True)
            found[layer] = max(
                output_divergence(answer, wanted, classes=number in classes)
                for number, (answer, wanted) in enumerate(pairs)
            )
            each(layer)
    return found


def output_divergence(answer: Array, wanted: Array, *, classes: bool) -> float:
    """How far an output is from that of the float model.

    Args:
        answer: `[N, ...]`.
        wanted: `[N, ...]`, of the float model.
        classes: Scores of classes on the last axis? Then the mean KL divergence of their softmax, in nats; else the
            squared error relative to the mean square.

    Returns:
        0 for equal outputs; infinite for one that is not finite where the float model's is.
    """
    ours, theirs = answer.astype(np.float64), wanted.astype(np.float64)
    known = np.isfinite(theirs)
    if not np.isfinite(ours[known]).all():
        return float("inf")
    if classes and known.all():
        ours, theirs = _log_softmax(ours), _log_softmax(theirs)
        return max(0.0, float((np.exp(theirs) * (theirs - ours)).sum(-1).mean()))
    wrong = ((ours - theirs)[known] ** 2).sum()
    return float(wrong / max((theirs[known] ** 2).sum(), _SMALLEST))


def _log_softmax(scores: Array) -> Array:
    shifted = scores - scores.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))


def _answers(path: Path, feeds: Sequence[Feeds]) -> list[Array]:
    """One array per output, all batches joined."""
    session = OnnxRuntime().open(path)
    batches = [session.run(batch) for batch in feeds]
    return [np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*batches, strict=True)]
