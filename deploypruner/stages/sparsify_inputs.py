"""What an ONNX file of any origin is calibrated, proved, judged and timed with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from deploypruner.errors import InputError
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.quality import Batch
from deploypruner.records import TensorSpec
from deploypruner.runtime import Session
from deploypruner.sources.data import DataSettings, load_data, settings_for
from deploypruner.stages import Feeds
from deploypruner.stages.answering import SessionRunner, as_numpy
from deploypruner.stages.fitting import Said, fit
from deploypruner.tasks.recognise import OutputTask

# Images of a batch where the file leaves it open; samples looked at; batches of random ones; batches proved with.
_DRAWN, _SAMPLES, _RANDOM, _PROVED = 8, 256, 4, 2


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
        return [_sized(feeds, self.specs, len(feeds[0])) for feeds, _ in self.samples]

    @property
    def proof(self) -> list[Feeds]:
        """A few of them."""
        return self.calibration[:_PROVED]

    @property
    def timed(self) -> Feeds:
        """One batch as the model is to run with; samples are repeated where there are fewer."""
        return _sized(self.samples[0][0], self.specs, self.batch)


def sparsify_inputs(
    session: Session, data: str | None, settings: DataSettings, *, batch: int | None, said: Said
) -> Inputs:
    """Read the data, or draw random inputs where there is none.

    Args:
        session: The model; of its inputs, only the batch may be open.
        data: Image folder, .npz or factory; None for random inputs.
        settings: How samples are prepared; its seed is that of random inputs and of the order of samples, too.
        batch: That the model is to run with; None: that of the file, 1 where it is open.
        said: About the outputs.

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
    examples = tuple(torch.zeros([1, *_sample_shape(spec)]) for spec in specs)
    loaded = load_data(data, settings_for(examples, None, settings))
    fitted = fit(loaded, SessionRunner(session, examples), said)
    parts = [
        [
            ([np.ascontiguousarray(t.numpy()) for t in inputs], as_numpy(labels))
            for inputs, labels in islice(split.with_targets(batch_size=drawn, seed=seed, shuffle=True), count)
        ]
        for split in (fitted.data.train, fitted.data.val)
    ]
    remarks = (*loaded.remarks, *fitted.remarks)
    return Inputs(tuple(specs), parts[0], fixed or batch or 1, parts[1], fitted.tasks, remarks)


def _fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Images that the file takes at once, None where that is open."""
    batches = [spec.shape[0] for spec in specs if spec.shape]
    return None if None in batches else next(iter(batches), 1)


def _sample_shape(spec: TensorSpec) -> tuple[int, ...]:
    return tuple(size or 1 for size in spec.shape[1:])


def _sized(feeds: Feeds, specs: Sequence[TensorSpec], batch: int) -> Feeds:
    """As many samples as the file's batch, or as `batch` where that is open: the first ones, again and again."""
    wanted = [spec.shape[0] or batch if spec.shape else None for spec in specs]
    return [
        array if size in (None, len(array)) else array[np.arange(size) % len(array)]
        for array, size in zip(feeds, wanted, strict=True)
    ]
