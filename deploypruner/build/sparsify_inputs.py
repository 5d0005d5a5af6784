"""What an ONNX file of any origin is calibrated, proved, judged and timed with."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploypruner.build.answering import SessionRunner, as_numpy
from deploypruner.build.fitting import Said, fit
from deploypruner.build.state import Feeds
from deploypruner.errors import InputError
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.quality import Batch
from deploypruner.recipe.data import DataSettings
from deploypruner.records import TensorSpec
from deploypruner.runtime import Session, shape_text
from deploypruner.sources.adapted import ChannelsLast
from deploypruner.sources.arrays import read_npz
from deploypruner.sources.data import Data, check_shapes, load_data, settings_for
from deploypruner.sources.matched import cast, matched
from deploypruner.tasks.recognise import OutputTask

# Images of a batch where the file leaves it open; samples looked at; batches of random ones; batches proved with.
_DRAWN, _SAMPLES, _RANDOM, _PROVED = 8, 256, 4, 2
# Channels of an image.
_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Inputs:
    """Samples, and the sizes in which a model takes them.

    Args:
        specs: The model's inputs.
        samples: Batches of training data, the last one perhaps smaller.
        batch: That the model is to run with.
        judged: Batches of validation data with their labels, which int8 forms are judged on.
        tasks: What every output is; None where only the answers to random inputs can tell.
        remarks: About the data.
    """

    specs: tuple[TensorSpec, ...]
    samples: list[Batch]
    batch: int
    judged: list[Batch]
    tasks: tuple[OutputTask, ...] | None = None
    remarks: tuple[str, ...] = ()

    @property
    def calibration(self) -> list[Feeds]:
        """All samples, in batches the model takes."""
        return [_sized(feeds, self.specs, _count(feeds)) for feeds, _ in self.samples]

    @property
    def proof(self) -> list[Feeds]:
        """A few of them."""
        return self.calibration[:_PROVED]

    @property
    def timed(self) -> Feeds:
        """One batch as the model is to run with; samples are repeated where there are fewer."""
        return _sized(self.samples[0][0], self.specs, self.batch)


def sparsify_inputs(
    session: Session,
    data: str | None,
    settings: DataSettings,
    *,
    batch: int | None,
    said: Said,
    judged: int = _SAMPLES,
) -> Inputs:
    """Read the data, or draw random inputs where there is none.

    Args:
        session: The model; of its inputs, only the batch may be open.
        data: Image folder, .npz or factory; None for random inputs.
        settings: How samples are prepared; its seed is that of random inputs and of the order of samples, too.
        batch: That the model is to run with; None: that of the file, 1 where it is open.
        said: About the outputs.
        judged: Validation samples, at most.

    Raises:
        InputError: The file's batch is another one, or the data does not fit.
    """
    specs, seed = session.inputs, settings.seed
    fixed = _fixed_batch(specs)
    if fixed is not None and batch not in (None, fixed):
        raise InputError(
            f"the batch of the model is fixed at {fixed}, and --batch asks for {batch}",
            hint="leave --batch out, or export the model with an open batch",
        )
    drawn = fixed or _DRAWN
    count = max(1, _SAMPLES // drawn)
    if data is None:
        shapes = {spec.name: (drawn, *_sample_shape(spec)) for spec in specs if spec.shape[:1] == (None,)}
        random = [random_feeds(specs, shapes=shapes, seed=seed + i) for i in range(min(count, _RANDOM))]
        samples: list[Batch] = [(feeds, None) for feeds in random]
        return Inputs(tuple(specs), samples, fixed or batch or 1, samples)
    examples = tuple(torch.zeros([1, *_sample_shape(spec)], dtype=getattr(torch, spec.dtype)) for spec in specs)
    names = tuple(spec.name for spec in specs)
    lone = next((s for s in specs if len(specs) > 1 and s.shape[:1] != specs[0].shape[:1]), None)
    if lone is not None:
        raise InputError(
            f"input '{lone.name}' has shape {shape_text(lone)} and '{names[0]}' {shape_text(specs[0])}: no sample of "
            "--data is one of both",
            hint="leave --data out, or export the model with the same first axis, its batch, in every input",
        )
    loaded, remarks = _loaded(data, examples, settings, names)
    fitted = fit(loaded, SessionRunner(session, examples), said)
    parts = [
        [
            ([np.asarray(t.numpy(), order="C") for t in inputs], as_numpy(labels))
            for inputs, labels in islice(split.with_targets(batch_size=drawn, seed=seed, shuffle=True), batches)
        ]
        for split, batches in ((fitted.data.train, count), (fitted.data.val, max(1, judged // drawn)))
    ]
    remarks = (*loaded.remarks, *remarks, *fitted.remarks)
    return Inputs(tuple(specs), parts[0], fixed or batch or 1, parts[1], fitted.tasks, remarks)


def one_batch(specs: Sequence[TensorSpec], data: str, settings: DataSettings) -> Feeds:
    """The first samples of the data as a model with these inputs takes them, one where its batch is open.

    Raises:
        InputError: The data does not fit.
    """
    fixed = _fixed_batch(specs)
    examples = tuple(torch.zeros([1, *_sample_shape(spec)], dtype=getattr(torch, spec.dtype)) for spec in specs)
    loaded, _ = _loaded(data, examples, settings, tuple(spec.name for spec in specs))
    check_shapes(loaded, examples)
    inputs, _ = next(iter(loaded.train.epoch(batch_size=fixed or 1, seed=settings.seed, shuffle=True)))
    return _sized([np.asarray(t.numpy(), order="C") for t in inputs], tuple(specs), fixed or 1)


def named_arrays(path: Path, specs: Sequence[TensorSpec]) -> Feeds | None:
    """One array per input from an .npz whose arrays are called as the inputs; None for any other data.

    Raises:
        InputError: An array that the input cannot take: its axes, a fixed size, a number its type cannot hold.
    """
    arrays = _by_name(path, tuple(spec.name for spec in specs))
    if arrays is None:
        return None
    feeds = []
    for spec in specs:
        array = arrays[spec.name]
        rows = array[: spec.shape[0]] if array.ndim and spec.shape and spec.shape[0] is not None else array
        fits = rows.ndim == len(spec.shape) and all(
            n in (None, m) for n, m in zip(spec.shape, rows.shape, strict=True)
        )
        if not fits or rows.dtype.kind not in "biuf":
            raise InputError(
                f"'{spec.name}' of '{path}' has shape {list(array.shape)} ({array.dtype}), the model takes "
                f"{shape_text(spec)} ({spec.dtype})",
                hint="save one array per input, the batch on axis 0",
            )
        feeds.append(
            cast(torch.from_numpy(np.asarray(rows, order="C")), getattr(torch, spec.dtype), spec.name).numpy()
        )
    return feeds


def _by_name(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any]] | None:
    """Arrays of an .npz called as the inputs; None where one lacks."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return None
    _, arrays = read_npz(path, names)
    return arrays if set(names) <= set(arrays) else None


def _loaded(
    data: str, examples: tuple[Tensor, ...], settings: DataSettings, names: tuple[str, ...]
) -> tuple[Data, tuple[str, ...]]:
    """The data as the model takes it: in its types, pixels from 0 to 255 for integers, channels where it has them."""
    first = examples[0]
    last = first.ndim == 4 and first.shape[3] in _CHANNELS and first.shape[1] not in _CHANNELS
    image = first.permute(0, 3, 1, 2) if last else first
    if not first.is_floating_point() and image.ndim == 4 and settings.mean is None and settings.std is None:
        channels = image.shape[1]
        settings = replace(settings, mean=(0.0,) * channels, std=(1 / 255,) * channels)
    loaded = load_data(data, settings_for((image, *examples[1:]), None, settings), inputs=names)
    if last and loaded.train.input_shapes == (tuple(image.shape[1:]),):
        train, val = ChannelsLast(loaded.train), ChannelsLast(loaded.val)
        loaded = replace(loaded, train=train, val=val)
    return matched(loaded, examples, names)


def _fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Images that the file takes at once, None where that is open."""
    batches = [spec.shape[0] for spec in specs if spec.shape]
    return None if None in batches else next(iter(batches), 1)


def _count(feeds: Feeds) -> int:
    """Samples in a batch; an input without axes has none."""
    return next((len(array) for array in feeds if array.ndim), 1)


def _sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size or 1 for size in spec.shape[1:])


def _sized(feeds: Feeds, specs: Sequence[TensorSpec], batch: int) -> Feeds:
    """As many samples as the file's batch, or as `batch` where that is open: the first ones, again and again."""
    wanted = [spec.shape[0] or batch if spec.shape else None for spec in specs]
    return [
        array if size is None or size == len(array) else array[np.arange(size) % len(array)]
        for array, size in zip(feeds, wanted, strict=True)
    ]
