"""What recovery minimises: the labels, the dense model's outputs, or a weighted sum of both."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError, RecipeError
from deploypruner.graph.inputs import tensors


def first_output(output: object) -> Tensor:
    """The first tensor of whatever a model returned: a tensor, a tuple, a list or a mapping.

    Raises:
        InputError: There is no tensor in it.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        parts = tuple(output.values())
    elif isinstance(output, (tuple, list)):
        parts = tuple(output)
    else:
        parts = ()
    for part in parts:
        if isinstance(part, Tensor):
            return part
    raise InputError(
        f"the model returned {type(output).__name__}, which holds no tensor to compare",
        hint="return a tensor, or a tuple or dict that has one",
    )


def label_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of `logits` [N, K, ...] with integer `labels` [N, ...]; scalar, in nats.

    Raises:
        InputError: The shapes do not fit each other.
    """
    if logits.dim() < 2 or labels.shape != logits.shape[:1] + logits.shape[2:]:
        raise InputError(
            f"labels of shape {list(labels.shape)} do not fit a model output of shape {list(logits.shape)}",
            hint="labels train outputs of shape [samples, classes]; leave the labels out to distil instead",
        )
    return F.cross_entropy(logits, labels.long(), label_smoothing=smoothing)


def every_output(output: object) -> list[Tensor]:
    """Every tensor of floats that a model returned, in order.

    Raises:
        InputError: There is no tensor in it.
    """
    return [t for t in tensors(output) if t.is_floating_point()] or [first_output(output)]


def distillation_loss(
    student: Tensor, teacher: Tensor, *, temperature: float = 4.0, classes: bool | None = None
) -> Tensor:
    """How far the student's output is from the teacher's; scalar, zero where they agree.

    Class scores [N, K] with K > 1: T^2 KL(softmax(teacher / T) || softmax(student / T)), averaged over N;
    T^2 keeps the size of the gradient independent of T. Any other shape, and with `classes` False these too, as the
    softmax of a box means nothing: squared error divided by the mean square of the teacher's output, so that the unit
    of the output does not matter (ours).

    Raises:
        InputError: The shapes differ.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, arXiv:1503.02531, sec. 2.
    """
    if student.shape != teacher.shape:
        raise InputError(
            f"the pruned model returns shape {list(student.shape)}, the dense model {list(teacher.shape)}",
            hint="distillation needs the same output shape; check that the model's output was not pruned",
        )
    if student.dim() == 2 and student.shape[1] > 1 and classes is not False:
        ours = F.log_softmax(student / temperature, dim=1)
        theirs = F.log_softmax(teacher / temperature, dim=1)
        return F.kl_div(ours, theirs, reduction="batchmean", log_target=True) * temperature**2
    scale = teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)
    return F.mse_loss(student, teacher) / scale


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error between features of the same shape; scalar, zero where they agree.

    Divided by the mean square of the teacher's (ours), so that one learning rate suits every network.

    Source:
        MiR, arXiv:2201.02620: |f_s - f_t|^2 before global pooling.
    """
    scale = teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)
    return F.mse_loss(student, teacher) / scale


def recovery_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor | None,
    *,
    distill: float,
    temperature: float,
    smoothing: float,
    classes: bool | None = None,
) -> Tensor:
    """`(1 - distill) label_loss + distill distillation_loss`; one alone where the other has nothing to go by.

    Args:
        student: Output of the model in training.
        teacher: Output of the dense model on the same inputs, or None.
        labels: Class labels, or None.
        distill: Weight of the teacher in [0, 1], used only where there are labels too.
        temperature: Softens both outputs, > 0.
        smoothing: Label smoothing in [0, 1).
        classes: Whether the output is scores of classes, see `distillation_loss`.

    Raises:
        RecipeError: Neither a teacher nor labels.
    """
    if labels is None and teacher is None:
        raise RecipeError(
            "there are no labels and no dense model to learn from", hint="pass labelled data, or the dense model"
        )
    if labels is None:
        assert teacher is not None, "checked above"
        return distillation_loss(student, teacher, temperature=temperature, classes=classes)
    by_label = label_loss(student, labels, smoothing=smoothing)
    if teacher is None:
        return by_label
    by_teacher = distillation_loss(student, teacher, temperature=temperature, classes=classes)
    return (1 - distill) * by_label + distill * by_teacher
