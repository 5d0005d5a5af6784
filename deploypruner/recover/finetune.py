"""Fine-tuning of a pruned model: deterministic, and resumable to the bit after every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploypruner.errors import InputError, RecipeError
from deploypruner.graph.inputs import call
from deploypruner.progress import Progress, SilentProgress
from deploypruner.recover import checkpoint as saved
from deploypruner.recover.batches import Batch, Batches
from deploypruner.recover.checkpoint import EpochRecord
from deploypruner.recover.losses import first_output, recovery_loss
from deploypruner.recover.modes import device_of, mode_kept
from deploypruner.recover.regime import Regime
from deploypruner.recover.settings import FinetuneSettings, learning_rate

__all__ = ["EpochRecord", "FinetuneHistory", "FinetuneSettings", "finetune"]


@dataclass(frozen=True)
class FinetuneHistory:
    """What happened, epoch by epoch.

    Args:
        epochs: One record per finished epoch.
        resumed: How many of them were read from a checkpoint; no part of equality.
    """

    epochs: tuple[EpochRecord, ...]
    resumed: int = field(default=0, compare=False)

    @property
    def score(self) -> float | None:
        """Validation result of the last epoch, whose weights the model holds; never the best of several."""
        return self.epochs[-1].score


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Batches,
    settings: FinetuneSettings,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    label: str = "recover",
    validate: Callable[[nn.Module], float] | None = None,
    regime: Regime | None = None,
) -> FinetuneHistory:
    """Train `student` in place; it holds the last epoch's weights afterwards. The teacher does not change.

    The same arguments give the same weights to the bit on one machine and thread count, also when the run
    was interrupted and started again with the same checkpoint file. A checkpoint that another run left
    (other settings, other initial weights, another teacher, another amount of data) is not used.
    torch's global random state is left as it was. A last batch of a single sample is skipped: batch norm
    has no variance over it.

    Args:
        student: Pruned model.
        teacher: Dense model, or None to learn from the labels alone.
        batches: Training data.
        settings: The recipe.
        checkpoint: File written after every epoch.
        progress: Told about every step and epoch.
        label: What the progress calls the job.
        validate: Called with the model in evaluation mode after each epoch; its result is the epoch's score.
        regime: Masks that go with the training; None for none. The student ends with its hard weights.

    Raises:
        RecipeError: Neither labels nor a teacher.
        InputError: No data, a loss that is not finite (the student then holds the last finished epoch).
    """
    if teacher is None and not batches.labelled:
        raise RecipeError(
            "there are no labels and no dense model to learn from", hint="pass labelled data, or the dense model"
        )
    progress = progress or SilentProgress()
    steps = _steps_per_epoch(batches, settings)
    regime = regime or Regime()
    about = (batches.labelled, steps, validate is None, regime.describe())
    fingerprint = saved.fingerprint(repr(settings), student, teacher, about)
    regime.begin(student, settings.epochs * steps)
    run = _Run(student, teacher, batches, settings, steps, progress, regime)
    done = [] if checkpoint is None else saved.load(checkpoint, fingerprint, student, run.optimizer, regime=regime)
    resumed = len(done)
    try:
        progress.start(settings.epochs * steps, label)
        progress.advance(resumed * steps, f"continued after epoch {resumed}" if resumed else "")
        for epoch in range(resumed, settings.epochs):
            done.append(run.epoch(epoch, validate))
            if checkpoint is not None:
                saved.save(checkpoint, fingerprint, student, run.optimizer, epochs=done, regime=regime)
    finally:
        progress.close()
    regime.finish(student)
    return FinetuneHistory(tuple(done), resumed)


@dataclass
class _Run:
    """The pieces of one fine-tuning run that every step needs."""

    student: nn.Module
    teacher: nn.Module | None
    batches: Batches
    settings: FinetuneSettings
    steps: int
    progress: Progress
    regime: Regime
    optimizer: torch.optim.SGD = field(init=False)

    def __post_init__(self) -> None:
        self.optimizer = _optimizer(self.student, self.settings)
        for group in self.regime.parameter_groups():
            self.optimizer.add_param_group(group)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._device = device_of(self.student)

    def epoch(self, epoch: int, validate: Callable[[nn.Module], float] | None) -> EpochRecord:
        """One pass over the data, and the validation after it."""
        settings = self.settings
        data = self.batches.epoch(
            batch_size=settings.batch_size, seed=settings.seed + epoch, shuffle=True, augment=settings.augment
        )
        total, count, lr = 0.0, 0, 0.0
        with self._restored_on_failure(), _seeded(settings.seed + epoch), mode_kept(self.student):
            self.student.train()
            with _teaching(self.teacher):
                for number, batch in enumerate(_usable(data)):
                    step = epoch * self.steps + number
                    lr = learning_rate(settings, step, settings.epochs * self.steps)
                    total += self._step(step, batch, lr, where=f"epoch {epoch + 1}, batch {number + 1}")
                    count += 1
                    self.progress.advance(1 if number + 1 < self.steps else 0)
            self.student.eval()
            with self.regime.hardened(self.student):
                score = None if validate is None else validate(self.student)
        record = EpochRecord(epoch + 1, total / count, lr, score)
        self.progress.advance(1, _milestone(record, settings.epochs))
        return record

    def _step(self, step: int, batch: Batch, lr: float, *, where: str) -> float:
        """One update of the weights; returns the loss."""
        inputs, labels = batch
        inputs = tuple(_placed(x, self._device, channels_last=self.settings.channels_last) for x in inputs)
        weights = self.regime.weights(step)
        output = first_output(
            functional_call(self.student, weights, inputs) if weights else call(self.student, inputs)
        )
        target = None
        if self.teacher is not None:
            with torch.no_grad():
                target = first_output(call(self.teacher, inputs))
        loss = recovery_loss(
            output,
            target,
            labels.to(self._device) if labels is not None and self.batches.labelled else None,
            distill=self.settings.distill,
            temperature=self.settings.temperature,
            smoothing=self.settings.label_smoothing,
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.regime.after_backward(step)
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm))
        value = float(loss.detach())
        for name, number in (("loss", value), ("gradient norm", norm)):
            if not math.isfinite(number):
                raise InputError(
                    f"the {name} became {number} in {where}",
                    hint=f"lower the learning rate (now {self.settings.lr:g}), and check the data for NaN",
                )
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self.optimizer.step()
        self.regime.after_step(step)
        return value

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """Put the weights of the last finished epoch back when this one fails."""
        before = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        try:
            yield
        except InputError:
            self.student.load_state_dict(before)
            raise


def _optimizer(student: nn.Module, settings: FinetuneSettings) -> torch.optim.SGD:
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "the model has no parameter that requires a gradient", hint="call requires_grad_() on what may be trained"
        )
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.SGD(used, lr=settings.lr, momentum=settings.momentum, nesterov=True)


def _steps_per_epoch(batches: Batches, settings: FinetuneSettings) -> int:
    """How many usable batches an epoch has, counted by reading one."""
    data = batches.epoch(batch_size=settings.batch_size, seed=settings.seed, shuffle=False, augment=False)
    steps = sum(1 for _ in _usable(data))
    if steps == 0:
        raise InputError("the training data has no samples", hint="check the training split")
    return steps


def _usable(data: Iterator[Batch]) -> Iterator[Batch]:
    """All batches but empty ones and a later one of a single sample."""
    for number, batch in enumerate(data):
        if len(batch[0][0]) > (0 if number == 0 else 1):
            yield batch


def _placed(tensor: Tensor, device: torch.device, *, channels_last: bool) -> Tensor:
    if channels_last and tensor.dim() == 4:
        return tensor.to(device, memory_format=torch.channels_last)
    return tensor.to(device)


def _milestone(record: EpochRecord, epochs: int) -> str:
    score = "" if record.score is None else f", validation {record.score:.2f}"
    return f"epoch {record.epoch} of {epochs}, loss {record.loss:.4f}{score}"


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw random numbers from `seed`, and leave the caller's sequence alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _teaching(teacher: nn.Module | None) -> Iterator[None]:
    if teacher is None:
        yield
        return
    with mode_kept(teacher):
        teacher.eval()
        yield
