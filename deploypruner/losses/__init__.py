"""What a model is trained by and compared by, output by output: one home for scoring, worth, judging and recovery.

Which loss an output has follows from its task (`tasks`); how it is computed is in `losses.kinds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.errors import InputError, RecipeError
from deploypruner.losses.labels import Labels, label_of, label_parts, labels_at, map_labels
from deploypruner.losses.output import OutputLoss, by_shape

__all__ = [
    "BY_SHAPE",
    "Labels",
    "ModelLoss",
    "OutputLoss",
    "label_of",
    "label_parts",
    "labels_at",
    "map_labels",
]


@dataclass(frozen=True)
class ModelLoss:
    """The loss of a model: the mean over its outputs, each with its own.

    Args:
        outputs: Of every output of floats, in order; where there are none, their shapes decide: `[N, K]` are classes,
            all else is values, and labels are classes of the first output.
    """

    outputs: tuple[OutputLoss, ...] = ()

    def of_samples(self, outputs: Sequence[Tensor], dense: Sequence[Tensor], labels: Labels) -> Tensor:
        """`[N]` in float64: how far each sample is off, from the labels of an output, else from the dense answer.

        Args:
            outputs: Of the network that is judged; what is no floating-point number is passed over.
            dense: Of the dense network on the same samples.
            labels: Of these samples, or None.

        Raises:
            InputError: Labels that do not fit, or no output that is a floating-point number.
        """
        ours, theirs = _floating(outputs), _floating(dense)
        samples = len(ours[0]) if ours[0].ndim else 1
        found = []
        for loss, output, wanted in zip(self.known(ours, labels), ours, theirs, strict=True):
            own = label_of(labels, loss.label)
            each = loss.by_dense(output, wanted).clamp_min(0) if own is None else loss.by_labels(output, own)
            found.append(each if len(each) == samples else each.mean().expand(samples))
        return torch.stack(found).mean(dim=0)

    def of_batch(
        self,
        outputs: Sequence[Tensor],
        dense: Sequence[Tensor],
        labels: Labels,
        *,
        distill: float,
        temperature: float = 4.0,
        smoothing: float = 0.0,
    ) -> Tensor:
        """The scalar that training makes small: `(1 - distill) labels + distill dense`, meaned over the outputs.

        An output without labels has its dense answer alone; one of a model without a teacher its labels alone.

        Args:
            outputs: Of the model in training, floats.
            dense: Of the dense model on the same inputs; empty without a teacher.
            labels: Of these samples, or None.
            distill: Weight of the dense answers in [0, 1] where there are labels too.
            temperature: Softens the probabilities of both, > 0.
            smoothing: Of labels, in [0, 1).

        Raises:
            RecipeError: Neither a teacher nor labels.
            InputError: Labels that do not fit, or other shapes than the dense model's.
        """
        found = []
        for number, loss in enumerate(self.known(outputs, labels)):
            own = label_of(labels, loss.label)
            parts = []
            if own is not None:
                by_labels = loss.by_labels(outputs[number], own, smoothing=smoothing).mean()
                parts.append(by_labels * (1 - distill) if dense else by_labels)
            if dense:
                by_dense = loss.by_dense(outputs[number], dense[number], temperature=temperature).mean()
                parts.append(by_dense if own is None else by_dense * distill)
            if parts:
                found.append(torch.stack(parts).sum())
        if not found:
            raise RecipeError(
                "there are no labels and no dense model to learn from", hint="pass labelled data, or the dense model"
            )
        return torch.stack(found).mean()

    def targets(self, outputs: Sequence[Tensor], labels: Labels, generator: torch.Generator) -> list[Tensor]:
        """What each output is differentiated against: its labels, else some drawn from the model's own answer."""
        found = []
        for loss, output in zip(self.known(outputs, labels), outputs, strict=True):
            own = label_of(labels, loss.label)
            found.append(loss.drawn(output, generator) if own is None else own.to(output.device))
        return found

    def against(self, outputs: Sequence[Tensor], targets: Sequence[Tensor], labels: Labels) -> Tensor:
        """Scalar loss against `targets`, the mean over the outputs."""
        known = zip(self.known(outputs, labels), outputs, targets, strict=True)
        losses = [
            loss.against(output, target, drawn=label_of(labels, loss.label) is None) for loss, output, target in known
        ]
        return torch.stack(losses).mean()

    def measured(self, outputs: Sequence[Tensor], labels: Labels) -> str:
        """What `of_samples` is, in words: "cross-entropy", "KL to the dense outputs", or several of these."""
        known = self.known(_floating(outputs), labels)
        return " + ".join(
            dict.fromkeys(loss.named(labelled=label_of(labels, loss.label) is not None) for loss in known)
        )

    def trained_by(self, *, labelled: bool, taught: bool = True) -> str:
        """What training makes small, in words; "" where nothing is known of the outputs.

        Args:
            labelled: Does the training data carry labels?
            taught: Is there a dense model?
        """
        found = {}
        for loss in self.outputs:
            ways = [True] * (labelled and loss.label is not None) + [False] * taught
            found[loss.output] = " and ".join(loss.named(labelled=way) for way in ways)
        if len(set(found.values())) <= 1:
            return next(iter(found.values()), "")
        return ", ".join(f"{name}: {text}" for name, text in found.items())

    def known(self, outputs: Sequence[Tensor], labels: Labels) -> Sequence[OutputLoss]:
        """The loss of every output."""
        if self.outputs:
            assert len(self.outputs) == len(outputs), f"{len(outputs)} outputs, {len(self.outputs)} losses"
            return self.outputs
        labelled = labels is not None
        return [by_shape(number, output, labelled=labelled) for number, output in enumerate(outputs)]


BY_SHAPE = ModelLoss()
"""The loss of a model of whose outputs nothing is known."""


def _floating(outputs: Sequence[Tensor]) -> list[Tensor]:
    found = [tensor.double() for tensor in outputs if tensor.is_floating_point()]
    if not found:
        raise InputError(
            "the model returns no floating-point number that a pruned model could be compared by",
            hint="return the scores instead of the decision made from them",
        )
    return found
