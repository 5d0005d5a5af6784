"""Are the samples like those of the training? Asked wherever a model and its data first meet, and said at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
import onnx
import torch
from torch import Tensor

from deploypruner.build.answering import Runner
from deploypruner.build.state import Feeds
from deploypruner.quantize.expected_inputs import doubt, first_norm_of_file, first_norm_of_module
from deploypruner.quantize.idle_layers import IdleLayers
from deploypruner.records import RELATIVE_ERROR
from deploypruner.sources.batches import Data
from deploypruner.tasks import tasks as registry
from deploypruner.tasks.recognise import OutputTask

# Samples that are looked at.
_SAMPLES = 32
# Calibration samples from which on a part of them can judge.
_FEW = 8
_NAMED = 3
_ALIKE = "the {} samples that were looked at are all alike: ranges and accuracy of such data mean nothing; check it"


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


def doubted_labels(tasks: Sequence[OutputTask] | None, drop: float | None, *, own: bool) -> tuple[str, ...]:
    """What a budget of accuracy is kept in, where there are no labels to count accuracy by.

    Args:
        tasks: What every output is; None where that is not known.
        drop: Points that were asked for, None where nothing was.
        own: Does a metric of the user's judge?
    """
    if drop is None or tasks is None or own or not (bare := [output for output in tasks if output.label is None]):
        return ()
    kinds = dict.fromkeys(registry.get(output.task).agreement_kind for output in bare)
    agreed = [kind for kind in kinds if kind != RELATIVE_ERROR]
    kept = [f"in points of agreement with the dense model ({', '.join(agreed)})"] if agreed else []
    if RELATIVE_ERROR in kinds:
        kept.append(f"as a relative error against the dense model of at most {drop:g} %")
    whose = "the data has no labels"
    if len(bare) < len(tasks):
        whose = f"the data has no labels of {_named([output.output for output in bare])}"
    return (f"{whose}: --accuracy-drop {drop:g} is kept {' and '.join(kept)}, not in points of accuracy",)


def doubted_count(samples: int) -> tuple[str, ...]:
    """That calibration samples are few, where they are."""
    if samples >= _FEW:
        return ()
    return (
        f"{samples} calibration {'sample is' if samples == 1 else 'samples are'} few: ranges and repair follow from "
        "nothing else; a few hundred unlabelled ones suffice",
    )


def doubted_layers(found: IdleLayers) -> tuple[str, ...]:
    """That layers compute nothing, where some do not: what int8 does to them says nothing about the others."""
    doubts = []
    if found.zero:
        have, them = ("has weights", "it") if len(found.zero) == 1 else ("have weights", "them")
        doubts.append(
            f"{_named(found.zero)} {have} of zeros alone: what comes of {them} does not depend on the inputs; check "
            f"that the weights were loaded, or prune {them}"
        )
    if found.constant:
        give = "gives" if len(found.constant) == 1 else "give"
        doubts.append(
            f"{_named(found.constant)} {give} the same for all {found.samples} samples, after the activation: int8 "
            "cannot go wrong there, and its accuracy says less about other data; look for activations that are "
            "always zero, and for weights that were not loaded"
        )
    return tuple(doubts)


def _named(names: Sequence[str]) -> str:
    """ "'a'", "'a' and 'b'", "'a', 'b', 'c' and 2 more"."""
    shown = [f"'{name}'" for name in names[:_NAMED]]
    more = len(names) - len(shown)
    *first, last = [*shown, f"{more} more"] if more else shown
    return f"{', '.join(first)} and {last}" if first else last


def doubted_samples(runner: Runner, inputs: list[Tensor]) -> tuple[str, ...]:
    """The same of one batch."""
    if _alike(inputs):
        return (_ALIKE.format(len(inputs[0])),)
    norm = first_norm_of_module(runner.module, lambda: list(runner.answers([(tuple(inputs), None)])))
    return tuple(filter(None, (doubt(norm, [np.asarray(x.numpy()) for x in inputs]),)))


def _alike(inputs: Sequence[Tensor]) -> bool:
    """Are all samples the same, in every input that has more than one?"""
    several = [x for x in inputs if x.ndim and len(x) > 1]
    return bool(several) and all(bool((x == x[:1]).all()) for x in several)


def doubted_file(model: onnx.ModelProto, batch: Feeds) -> tuple[str, ...]:
    """The same of an ONNX file; most files have their batch norms folded into other layers, which says nothing."""
    if _alike([torch.from_numpy(array) for array in batch]):
        return (_ALIKE.format(len(batch[0])),)
    return tuple(filter(None, (doubt(first_norm_of_file(model, batch), batch),)))
