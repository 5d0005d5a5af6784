"""How long to train where nobody said: from the amount of data, the gap to the dense model, and the time of a step.

The numbers are ours. With labels, a point of accuracy that is missing is worth 40,000 images: on CIFAR-10 a ResNet
that lost ten points then sees its 50,000 images eight times. A few images without labels would be learnt by heart, so
there the network mimics the dense one's features with batch norm as it is, for 2,000 steps (MiR, arXiv:2201.02620).
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil

from torch import nn

from deploypruner.losses import ModelLoss
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import FirstBatches, TrainingBatches
from deploypruner.train.features import Features
from deploypruner.train.finetune import finetune

FEW = 2000
_STEPS, _FEW_MINUTES, _FEW_BATCH = 2000, 20.0, 32
# At SGD's usual 0.02 a pruned EfficientNet-Lite0 fell from 74.4 to 59.0 % in its first epoch of 500 photographs.
_FEW_OPTIMIZER, _FEW_LR = "adamw", 1e-4
_IMAGES_PER_POINT, _FEWEST, _MOST, _MOST_EPOCHS = 40_000, 100_000, 1_000_000, 60
_GAP_UNKNOWN = 10.0  # points
_GENTLE = ((1.0, 0.25), (3.0, 0.5))  # below a gap of so many points, so much of the usual learning rate
_TIMED = 3  # steps; the first warms up


@dataclass(frozen=True)
class TrainingOutlook:
    """What training is going to be.

    Args:
        settings: Of the fine-tuning, its epochs included.
        steps: Of one epoch.
        seconds: What it will take, validation not counted.
    """

    settings: FinetuneSettings
    steps: int
    seconds: float

    @property
    def text(self) -> str:
        """ "3 epochs x 390 steps, about 4 min"."""
        epochs = self.settings.epochs
        took = f"{self.seconds:.0f} s" if self.seconds < 90 else f"{self.seconds / 60:.0f} min"
        return f"{epochs} epoch{'' if epochs == 1 else 's'} x {self.steps} steps, about {took}"


def recovery_defaults(
    settings: FinetuneSettings,
    *,
    samples: int,
    labelled: bool,
    gap: float | None,
    seconds_per_step: Callable[[FinetuneSettings], float],
    minutes: float = 60.0,
) -> TrainingOutlook:
    """Epochs, learning rate and kind of training; whatever `settings` has that is not the default stays.

    Args:
        settings: What the user asked for.
        samples: Training images, >= 1.
        labelled: Whether they carry labels.
        gap: Points of accuracy that are missing to the dense model before training, None where unknown.
        seconds_per_step: Time of one step under the settings it is given, s.
        minutes: Longest training, > 0; few unlabelled images get 20 at most. One epoch takes place in any case.
    """
    if samples < FEW and not labelled:
        settings = _filled(
            settings, mimic=1.0, freeze_batchnorm=True, schedule="step", batch_size=min(_FEW_BATCH, samples)
        )
        if settings.lr is None and settings.optimizer == FinetuneSettings().optimizer:
            settings = replace(settings, optimizer=_FEW_OPTIMIZER, lr=_FEW_LR)
        wanted = float(_STEPS * settings.batch_size)
        minutes = min(minutes, _FEW_MINUTES)
    else:
        missing = _GAP_UNKNOWN if gap is None else max(gap, 0.0)
        gentle = next((share for below, share in _GENTLE if missing < below), 1.0)
        settings = _filled(settings, lr=gentle * settings.peak_lr)
        wanted = min(max(missing * _IMAGES_PER_POINT, _FEWEST), _MOST)
    steps = ceil(samples / settings.batch_size)
    epochs = max(1, round(wanted / samples))
    if labelled:
        epochs = min(epochs, _MOST_EPOCHS)
    step = seconds_per_step(settings)
    epochs = max(1, min(epochs, int(60 * minutes / (steps * max(step, 1e-9)))))
    if labelled:
        settings = _filled(settings, patience=max(3, ceil(epochs / 3)))
    elif settings.freeze_batchnorm:
        settings = _filled(settings, patience=epochs)  # the best epoch is kept, none is left out
    return TrainingOutlook(replace(settings, epochs=epochs), steps, epochs * steps * step)


def time_step(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: TrainingBatches,
    settings: FinetuneSettings,
    *,
    features: Features | None = None,
    loss: ModelLoss | None = None,
) -> float:
    """Seconds of one training step, the faster of two real ones on a copy of the student."""
    watch = _StepTimes()
    few = FirstBatches(batches, _TIMED)
    plain = replace(settings, epochs=1, devices=1, hosts=1, patience=0)
    finetune(copy.deepcopy(student), teacher, few, plain, progress=watch, features=features, loss=loss)
    passed = [later - earlier for earlier, later in zip(watch.times, watch.times[1:], strict=False)]
    return min(passed[1:] or passed)


class _StepTimes:
    """A progress that notes when each step was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, total: int, label: str) -> None:
        pass

    def advance(self, n: int = 1, text: str = "") -> None:
        if not self.times or n:
            self.times.append(time.perf_counter())

    def close(self) -> None:
        pass


def _filled(settings: FinetuneSettings, **defaults: object) -> FinetuneSettings:
    """The settings with these where the user left the general default."""
    general = FinetuneSettings()
    changed = {k: v for k, v in defaults.items() if getattr(settings, k) == getattr(general, k)}
    return replace(settings, **changed)  # type: ignore[arg-type]
