"""The loss of one output: with its labels, and towards the dense model's answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.losses import kinds
from deploypruner.tasks import LossKind

_BY_LABELS: dict[LossKind, str] = {
    "classes": "cross-entropy",
    "decisions": "binary cross-entropy",
    "values": "squared error",
}
_BY_DENSE: dict[LossKind, str] = {
    "classes": "KL to the dense outputs",
    "decisions": "binary KL to the dense outputs",
    "direction": "cosine distance to the dense outputs",
    "values": "relative error of the outputs",
}


@dataclass(frozen=True)
class OutputLoss:
    """What one output of floats is trained by and compared by.

    Args:
        output: Its name.
        kind: See `tasks.LossKind`.
        label: Which of a batch's labels are its own, None for none.
        class_axis: Axis of the classes.
        probabilities: Does the model answer with probabilities, and not with scores or logits?
        spread: Variance of the dense model's answers around their mean over the samples; None where not known.
        label_spread: The same of the labels.
    """

    output: str
    kind: LossKind
    label: int | None = None
    class_axis: int = 1
    probabilities: bool = False
    spread: float | None = None
    label_spread: float | None = None

    def by_labels(self, output: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """`[N]`: cross-entropy, binary cross-entropy, or the squared error in variances of the labels (1 - R2).

        Raises:
            InputError: Labels that do not fit.
        """
        self._check(output, labels)
        if self.kind == "classes":
            return kinds.cross_entropy(self.scores(output), labels, smoothing=smoothing)
        if self.kind == "decisions":
            logits = kinds.logits_of(output, probabilities=self.probabilities)
            return kinds.binary_cross_entropy(logits, labels, smoothing=smoothing)
        return kinds.relative_squares(output, labels, spread=self.label_spread)

    def by_dense(self, output: Tensor, dense: Tensor, *, temperature: float = 1.0) -> Tensor:
        """`[N]`, 0 where both agree: divergence of classes or decisions, distance of directions, or squared error.

        Raises:
            InputError: The shapes differ.
        """
        if output.shape != dense.shape:
            raise InputError(
                f"the pruned model returns shape {list(output.shape)}, the dense model {list(dense.shape)}",
                hint="distillation needs the same output shape; check that the model's output was not pruned",
            )
        if self.kind == "classes":
            return kinds.class_divergence(self.scores(output), self.scores(dense), temperature=temperature)
        if self.kind == "decisions":
            ours, theirs = (kinds.logits_of(values, probabilities=self.probabilities) for values in (output, dense))
            return kinds.binary_divergence(ours, theirs, temperature=temperature)
        if self.kind == "direction":
            return kinds.cosine_distance(output, dense)
        return kinds.relative_squares(output, dense, spread=self.spread)

    def scores(self, output: Tensor) -> Tensor:
        """Scores of classes `[N, K, ...]`."""
        return kinds.scores_of(output, axis=self.class_axis, probabilities=self.probabilities)

    def answers(self, output: Tensor) -> Tensor:
        """Classes `[N, ...]` with the largest scores."""
        return self.scores(output).argmax(dim=1)

    def right(self, output: Tensor, labels: Tensor) -> Tensor:
        """`[N]`: share of a sample's places that count whose answer is the label."""
        return kinds.right_share(self.scores(output), labels)

    def drawn(self, output: Tensor, generator: torch.Generator) -> Tensor:
        """Labels drawn from the model's own answer, so that squared gradients estimate the Fisher information.

        Classes and decisions with the probabilities it gives them; of all else numbers with unit Gaussian noise, in
        units of the spread.

        Args:
            output: On any device.
            generator: On the CPU, so that every device draws the same.
        """
        output = output.detach()
        if self.kind == "classes":
            scores = self.scores(output)
            rows = scores.movedim(1, -1).reshape(-1, scores.shape[1]).softmax(1).float().cpu()
            drawn = torch.multinomial(rows, 1, generator=generator)
            return drawn.reshape(len(scores), *scores.shape[2:]).to(output.device)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
        if self.kind == "decisions":
            chance = torch.sigmoid(kinds.logits_of(output, probabilities=self.probabilities))
            return (torch.special.ndtr(noise) < chance).to(output.dtype)
        return output + noise * self._noise

    def against(self, output: Tensor, target: Tensor, *, drawn: bool) -> Tensor:
        """Mean loss of a minibatch against its labels, or against what was drawn.

        Half the sum of squares for numbers that were drawn: minus the logarithm of the density they were drawn from.
        """
        if drawn and self.kind in ("direction", "values"):
            count = len(output) if output.ndim else 1
            return 0.5 * ((output - target) / self._noise).square().sum() / count
        return self.by_labels(output, target).mean()

    def named(self, *, labelled: bool) -> str:
        """What the loss is called, with labels or without."""
        return _BY_LABELS[self.kind] if labelled else _BY_DENSE[self.kind]

    @property
    def _noise(self) -> float:
        return 1.0 if self.spread is None else max(self.spread, torch.finfo(torch.float32).tiny) ** 0.5

    def _check(self, output: Tensor, labels: Tensor) -> None:
        places = output.shape[:1] + output.movedim(self.class_axis, 1).shape[2:] if output.ndim > 1 else output.shape
        numbers = places.numel() if self.kind == "classes" else output.numel()
        one_hot = self.kind == "classes" and labels.shape == output.shape and output.ndim == 2
        fits = len(labels.shape) > 0 and len(output.shape) > 0 and len(labels) == len(output)
        fits = fits and (labels.numel() == numbers or one_hot)
        if not fits or (self.kind == "classes" and output.ndim < 2):
            raise InputError(
                f"labels of shape {list(labels.shape)} do not fit a model output of shape {list(output.shape)}",
                hint="labels train outputs of shape [samples, classes]; leave the labels out to distil instead",
            )


def by_shape(number: int, output: Tensor, *, labelled: bool) -> OutputLoss:
    """The loss of an output of which nothing is known: classes `[N, K]`, with labels `[N, K, ...]`; else values."""
    label = 0 if labelled and number == 0 else None
    classes = output.ndim >= 2 and output.shape[1] > 1 and (output.ndim == 2 or label is not None)
    return OutputLoss(f"output_{number}", "classes" if classes or label is not None else "values", label)
