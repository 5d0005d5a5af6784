"""Fine-tuning of a pruned model: deterministic, and resumable to the bit after every epoch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn

from deploypruner.errors import InputError, RecipeError
from deploypruner.losses import BY_SHAPE, ModelLoss
from deploypruner.progress import Progress, SilentProgress
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train import checkpoint as saved
from deploypruner.train.batches import TrainingBatches
from deploypruner.train.checkpoint import EpochRecord, Identity, State
from deploypruner.train.features import Features
from deploypruner.train.launch import run_together
from deploypruner.train.loop import Loop, best_epoch, steps_per_epoch
from deploypruner.train.modes import device_of
from deploypruner.train.precision import chosen_amp
from deploypruner.train.process_group import Team
from deploypruner.train.regime import Regime

__all__ = ["EpochRecord", "FinetuneHistory", "FinetuneSettings", "finetune"]


@dataclass(frozen=True)
class FinetuneHistory:
    """What happened, epoch by epoch.

    Args:
        epochs: One record per finished epoch; fewer than asked for where `patience` ran out.
        patient: Whether the model holds the best epoch's weights instead of the last one's.
        resumed: How many of them were read from a checkpoint; no part of equality.
    """

    epochs: tuple[EpochRecord, ...]
    resumed: int = field(default=0, compare=False)
    patient: bool = False

    @property
    def held(self) -> int:
        """Number of the epoch whose weights the model holds: the last one, with `patience` the best."""
        best = best_epoch(self.epochs) if self.patient else None
        return self.epochs[-1].epoch if best is None else best

    @property
    def score(self) -> float | None:
        """Validation result of the epoch whose weights the model holds."""
        return self.epochs[self.held - 1].score


def finetune(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: TrainingBatches,
    settings: FinetuneSettings,
    *,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
    label: str = "recover",
    validate: Callable[[nn.Module], float] | None = None,
    regime: Regime | None = None,
    features: Features | None = None,
    loss: ModelLoss | None = None,
) -> FinetuneHistory:
    """Train `student` in place; it holds the last epoch's weights afterwards. The teacher does not change.

    The same arguments give the same weights to the bit on one machine and thread count, also when the run
    was interrupted and started again with the same checkpoint file. A checkpoint that another run left
    (other settings, other initial weights, another teacher, another amount of data) is not used; but after a run
    that stopped at a loss that is not finite, one that differs in a lower learning rate alone goes on from the last
    finished epoch. torch's global random state is left as it was. A last batch of a single sample is skipped: batch
    norm has no variance over it.

    With several devices, every process takes its share of each batch and gradients are averaged, so that a step is
    that of one process on the whole batch, but for batch norm, which normalises each share by itself (its running
    statistics are averaged after every epoch), and for dropout. The calling process does not train.

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
        features: What both networks decide from (`find_features`), for `settings.mimic`; without, outputs alone.
        loss: Of every output; by shape where None.

    Raises:
        RecipeError: Neither labels nor a teacher.
        InputError: No data, a loss that is not finite (the student then holds the last finished epoch), devices
            that cannot be used.
    """
    if teacher is None and not batches.labelled:
        raise RecipeError(
            "there are no labels and no dense model to learn from", hint="pass labelled data, or the dense model"
        )
    progress = progress or SilentProgress()
    device = _device(settings, student)
    about = (validate, regime or Regime(), features, loss or BY_SHAPE)
    job = _Job(student, teacher, batches, settings, checkpoint, label, *about)
    return (job.together if settings.devices * settings.hosts > 1 else job.alone)(progress, device)


@dataclass
class _Job:
    """The arguments of one fine-tuning."""

    student: nn.Module
    teacher: nn.Module | None
    batches: TrainingBatches
    settings: FinetuneSettings
    checkpoint: Path | None
    label: str
    validate: Callable[[nn.Module], float] | None
    regime: Regime
    features: Features | None
    loss: ModelLoss

    def together(self, progress: Progress, device: torch.device) -> FinetuneHistory:
        """Train in several processes, and take over what they made."""

        def job(team: Team, progress: Progress) -> bytes:
            mine = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
            with _on(mine, self.student), _on(mine, self.teacher):
                history = self._train(progress, team)
            about = {"epochs": [asdict(epoch) for epoch in history.epochs], "resumed": history.resumed}
            tensors = {f"student.{name}": tensor for name, tensor in self.student.state_dict().items()}
            tensors |= {f"regime.{name}": tensor for name, tensor in self.regime.state().items()}
            tensors["about"] = torch.tensor(list(json.dumps(about).encode()), dtype=torch.uint8)
            return to_bytes({name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()})

        steps = steps_per_epoch(self.batches, self.settings, least=self.settings.devices * self.settings.hosts)
        made = from_bytes(
            run_together(
                job,
                accelerator=device.type,
                devices=self.settings.devices,
                hosts=self.settings.hosts,
                progress=progress,
            )
        )
        about = json.loads(bytes(made.pop("about").tolist()))
        state = State([], made)
        self.regime.begin(self.student, self.settings.epochs * steps)
        self.student.load_state_dict(state.part("student."))
        self.regime.load_state(state.part("regime."))
        self.regime.finish(self.student)  # here, so that the caller's regime knows how it ended
        epochs = tuple(EpochRecord(**epoch) for epoch in about["epochs"])
        return FinetuneHistory(epochs, about["resumed"], self.settings.patience > 0)

    def alone(self, progress: Progress, device: torch.device) -> FinetuneHistory:
        """Train in this process."""
        with _on(device, self.student), _on(device, self.teacher):
            history = self._train(progress, Team())
            self.regime.finish(self.student)
            return history

    def _train(self, progress: Progress, team: Team) -> FinetuneHistory:
        """Train as one of a team, up to where the regime finishes."""
        epochs, path = self.settings.epochs, self.checkpoint
        steps = steps_per_epoch(self.batches, self.settings, least=team.size)
        identity = self._identity(steps)
        self.regime.begin(self.student, epochs * steps)
        loop = Loop(
            *(self.student, self.teacher, self.batches, self.settings, steps, self.regime, team, progress),
            features=self.features,
            loss=self.loss,
        )
        state = None if path is None else saved.load(path, identity)
        done = [] if state is None else loop.load(state)
        resumed = len(done)
        team.same(steps, "the number of batches")
        team.same(resumed, "the epochs that a checkpoint holds")
        try:
            progress.start(epochs * steps, self.label)
            progress.advance(resumed * steps, f"continued after epoch {resumed}" if resumed else "")
            stop = bool(done) and loop.keep_best(done)
            for epoch in range(resumed, epochs):
                if stop:
                    break
                try:
                    done.append(loop.epoch(epoch, self.validate))
                except InputError:
                    if path is not None and team.rank == 0:
                        saved.mark_stopped(path, identity)
                    raise
                stop = loop.keep_best(done)
                if path is not None and team.rank == 0:
                    saved.save(path, identity, loop.state(done))
        finally:
            progress.close()
        loop.finish()
        return FinetuneHistory(tuple(done), resumed, self.settings.patience > 0)

    def _identity(self, steps: int) -> Identity:
        about = (
            self.batches.labelled,
            steps,
            self.validate is None,
            self.regime.describe(),
            self.features,
            self.loss,
        )
        amp = chosen_amp(self.settings.amp, self.student)
        text = repr(replace(self.settings, lr=None, amp=amp))
        return Identity(saved.fingerprint(text, self.student, self.teacher, about), self.settings.peak_lr)


def _device(settings: FinetuneSettings, student: nn.Module) -> torch.device:
    if settings.accelerator == "auto":
        return device_of(student)
    if settings.accelerator == "cuda" and not torch.cuda.device_count():
        raise InputError("this machine has no CUDA device to train on", hint='set accelerator = "cpu"')
    return torch.device(settings.accelerator)


@contextmanager
def _on(device: torch.device, module: nn.Module | None) -> Iterator[None]:
    """The module's tensors on a device for the length of the block."""
    home = device if module is None else device_of(module)
    if module is None or home.type == device.type:
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
