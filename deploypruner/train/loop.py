"""The training loop: what happens in a step and in an epoch, and the state that goes from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from deploypruner.errors import InputError
from deploypruner.graph.execute.module import TracedModule
from deploypruner.graph.inputs import call
from deploypruner.losses import BY_SHAPE, ModelLoss, map_labels
from deploypruner.progress import Progress
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.optimizers import make_optimizer
from deploypruner.train.batches import Batch, TrainingBatches
from deploypruner.train.checkpoint import EpochRecord, State, load_optimizer, optimizer_state
from deploypruner.train.ema import WeightAverage
from deploypruner.train.features import Features, WithFeatures
from deploypruner.train.learning_rate import learning_rate
from deploypruner.train.losses import every_output, feature_loss
from deploypruner.train.modes import device_of, mode_kept, outputs_as_evaluated
from deploypruner.train.precision import Precision, chosen_amp
from deploypruner.train.process_group import Team
from deploypruner.train.regime import Regime


@dataclass
class Loop:
    """One fine-tuning run in one process; the regime has begun.

    Args:
        student: Trained in place.
        teacher: Dense model, or None.
        batches: Training data.
        settings: The recipe.
        steps: Batches of one epoch.
        regime: Masks.
        team: The processes that train together.
        progress: Told about every step and epoch.
        features: What both networks decide from, for `mimic`; None where that is not known.
        loss: Of every output; by shape where nothing is known.
    """

    student: nn.Module
    teacher: nn.Module | None
    batches: TrainingBatches
    settings: FinetuneSettings
    steps: int
    regime: Regime
    team: Team
    progress: Progress
    features: Features | None = None
    loss: ModelLoss = BY_SHAPE
    optimizer: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        groups = [*_groups(self.student, self.settings), *self.regime.parameter_groups()]
        named = self.settings.optimizer, self.settings.optimizer_parameters
        self.optimizer = make_optimizer(groups, *named, momentum=self.settings.momentum)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._device = device_of(self.student)
        self._average = WeightAverage(self.student, self.settings.ema)
        self._precision = Precision(chosen_amp(self.settings.amp, self.student), self._device)
        self._watched = self._with_features()
        self._best: dict[str, Tensor] = {}

    # ------------------------------------------------------------------ state

    def state(self, epochs: list[EpochRecord]) -> State:
        """Everything that another process needs to go on after these epochs."""
        remembered, numbers = optimizer_state(self.optimizer)
        tensors = self._result() | {f"optimizer.{name}": tensor for name, tensor in remembered.items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        return State(epochs, tensors, {"optimizer": numbers, "precision": self._precision.state()})

    def load(self, state: State) -> list[EpochRecord]:
        """Put a saved state back; returns its epochs."""
        self._load_result(state)
        self._best = state.part("best.")
        load_optimizer(self.optimizer, state.part("optimizer."), state.numbers["optimizer"])
        self._precision.load_state(state.numbers["precision"])
        return list(state.epochs)

    def keep_best(self, epochs: list[EpochRecord]) -> bool:
        """Remember the last epoch if it is the best so far; is it time to stop? Only with `patience`."""
        best = best_epoch(epochs)
        if not self.settings.patience or best is None:
            return False
        if best == epochs[-1].epoch:
            self._best = {name: tensor.detach().clone() for name, tensor in self._result().items()}
        return epochs[-1].epoch - best >= self.settings.patience

    def finish(self) -> None:
        """Leave the weights in the student that the regime then finishes."""
        if self._best:
            self._load_result(State([], self._best))
        self._average.write(self.student)

    def _result(self) -> dict[str, Tensor]:
        """What the end of training is made from."""
        parts = {
            "student": self.student.state_dict(),
            "regime": self.regime.state(),
            "average": self._average.state(),
        }
        return {f"{part}.{name}": t for part, state in parts.items() for name, t in state.items()}

    def _load_result(self, state: State) -> None:
        self.student.load_state_dict(state.part("student."))
        self.regime.load_state(state.part("regime."))
        self._average.load_state(state.part("average."))

    def _with_features(self) -> tuple[WithFeatures, WithFeatures] | None:
        """Both networks with their features, where those are to be mimicked."""
        if self.features is None or not self.settings.mimic or self.teacher is None:
            return None
        assert isinstance(self.student, TracedModule), "features are nodes of the pruned graph"
        assert isinstance(self.teacher, TracedModule), "features are nodes of the dense graph"
        ours = WithFeatures(self.student, self.features.pruned)
        theirs = WithFeatures(self.teacher, self.features.dense)
        theirs.train(False)
        return ours, theirs

    # ------------------------------------------------------------------ training

    def epoch(self, epoch: int, validate: Callable[[nn.Module], float] | None) -> EpochRecord:
        """One pass over the data, and the validation after it."""
        settings = self.settings
        data = self.batches.epoch(
            batch_size=settings.batch_size, seed=settings.seed + epoch, shuffle=True, augment=settings.augment
        )
        total, count, lr = 0.0, 0, 0.0
        seed = settings.seed + epoch + 1_000_003 * self.team.rank  # ranks differ in their dropout
        with (
            self._restored_on_failure(),
            _seeded(seed),
            outputs_as_evaluated(self.student),
            mode_kept(self.student),
        ):
            self.student.train(not settings.freeze_batchnorm)
            if self._watched is not None:
                self._watched[0].train(not settings.freeze_batchnorm)
            with _teaching(self.teacher):
                for number, batch in enumerate(usable(data, least=self.team.size)):
                    step = epoch * self.steps + number
                    lr = learning_rate(settings, step, settings.epochs * self.steps)
                    total += self._step(step, batch, lr, where=f"epoch {epoch + 1}, batch {number + 1}")
                    count += 1
                    self.progress.advance(1 if number + 1 < self.steps else 0)
            self._share_statistics()
            self.student.eval()
            score = None if validate is None or self.team.rank else self._score(validate)
        if validate is not None and settings.patience:
            score = self._shared(score)  # everybody has to stop at the same epoch
        record = EpochRecord(epoch + 1, total / count, lr, score)
        self.progress.advance(1, _milestone(record, settings.epochs))
        return record

    def _score(self, validate: Callable[[nn.Module], float]) -> float:
        """Validate what training would end in now; the averaged weights first, so that masks on them are exact."""
        with self._average.in_place(self.student), self.regime.hardened(self.student):
            return validate(self.student)

    def _shared(self, score: float | None) -> float:
        """The score of rank 0, on every process."""
        told = torch.tensor([0.0 if score is None else score], dtype=torch.float64)
        if self.team.size > 1:
            self.team.mean([told])
        return float(told) * self.team.size

    def _step(self, step: int, batch: Batch, lr: float, *, where: str) -> float:
        """One update of the weights; returns the loss."""
        mine, weight = self.team.share(batch)
        loss = self._loss(step, mine)
        if weight != 1:
            loss = loss * weight
        value = loss.detach().clone()
        self.team.mean([value])
        self._require_finite("loss", float(value), where)
        self.optimizer.zero_grad(set_to_none=True)
        self._precision.backward(loss)
        self.team.mean_gradients(self._parameters)
        skipped = self._precision.unscale(self.optimizer, where=where)
        if not skipped:
            self.regime.after_backward(step)
            norm = float(nn.utils.clip_grad_norm_(self._parameters, self.settings.clip_norm))
            self._require_finite("gradient norm", norm, where)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)
        self._precision.step(self.optimizer)
        if not skipped:
            self.regime.after_step(step)
            self._average.update(self.student)
        return float(value)

    def _loss(self, step: int, batch: Batch) -> Tensor:
        inputs, labels = batch
        inputs = tuple(_placed(x, self._device, channels_last=self.settings.channels_last) for x in inputs)
        with self._precision.forward():
            outputs, targets, ours, theirs = self._run(self.regime.weights(step), inputs)
        if self._precision.mixed:
            outputs, targets = [t.float() for t in outputs], [t.float() for t in targets]
        loss = self.loss.of_batch(
            outputs,
            targets,
            map_labels(lambda part: part.to(self._device), labels if self.batches.labelled else None),
            distill=self.settings.distill,
            temperature=self.settings.temperature,
            smoothing=self.settings.label_smoothing,
        )
        if ours is None or theirs is None or self.features is None:
            return loss
        return loss + self.settings.mimic * feature_loss(ours.float(), self.features.of_dense(theirs.float()))

    def _run(
        self, weights: dict[str, Tensor], inputs: tuple[Tensor, ...]
    ) -> tuple[list[Tensor], list[Tensor], Tensor | None, Tensor | None]:
        """Outputs of the student and of the teacher, and the features of both where they are mimicked."""
        if self._watched is not None:
            student, teacher = self._watched
            output, ours = student(inputs, weights)
            with torch.no_grad():
                target, theirs = teacher(inputs, {})
            return every_output(output), every_output(target), ours, theirs
        outputs = every_output(
            functional_call(self.student, weights, inputs) if weights else call(self.student, inputs)
        )
        if self.teacher is None:
            return outputs, [], None, None
        with torch.no_grad():
            return outputs, every_output(call(self.teacher, inputs)), None, None

    def _share_statistics(self) -> None:
        """Average the running statistics, which each process took of its own samples."""
        if self.team.size > 1:
            buffers = dict(self.student.named_buffers())
            averages = {name: value for name, value in self._average.values.items() if name in buffers}
            self.team.mean([b for b in (*buffers.values(), *averages.values()) if b.is_floating_point()])

    def _require_finite(self, name: str, number: float, where: str) -> None:
        if not math.isfinite(number):
            raise InputError(
                f"the {name} became {number} in {where}",
                hint=f"lower the learning rate (now {self.settings.peak_lr:g}), and check the data for NaN",
            )

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        """Put the weights of the last finished epoch back when this one fails."""
        before = {name: tensor.clone() for name, tensor in self.student.state_dict().items()}
        try:
            yield
        except InputError:
            self.student.load_state_dict(before)
            raise


def best_epoch(epochs: Sequence[EpochRecord]) -> int | None:
    """Number of the first epoch with the highest score, None without scores."""
    scored = [(record.score, -record.epoch) for record in epochs if record.score is not None]
    return -max(scored)[1] if scored else None


def steps_per_epoch(batches: TrainingBatches, settings: FinetuneSettings, *, least: int = 1) -> int:
    """How many usable batches an epoch has for `least` processes, counted by reading one.

    Raises:
        InputError: None.
    """
    data = batches.epoch(batch_size=settings.batch_size, seed=settings.seed, shuffle=False, augment=False)
    steps = sum(1 for _ in usable(data, least=least))
    if steps == 0:
        too_few = f"fewer than {least} samples a batch" if least > 1 else "no samples"
        raise InputError(f"the training data has {too_few}", hint="check the training split")
    return steps


def usable(data: Iterator[Batch], *, least: int = 1) -> Iterator[Batch]:
    """The first batch if every process gets a sample of it, later ones if every process gets two."""
    for number, batch in enumerate(data):
        if len(batch[0][0]) >= (least if number == 0 else 2 * least):
            yield batch


def _groups(student: nn.Module, settings: FinetuneSettings) -> list[dict[str, object]]:
    trained = [p for p in student.parameters() if p.requires_grad]
    if not trained:
        raise InputError(
            "the model has no parameter that requires a gradient", hint="call requires_grad_() on what may be trained"
        )
    groups: list[dict[str, object]] = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


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
