"""What recovery takes from what a model returns, and how far features are apart."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
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


def every_output(output: object) -> list[Tensor]:
    """Every tensor of floats that a model returned, in order.

    Raises:
        InputError: There is no tensor in it.
    """
    return [t for t in tensors(output) if t.is_floating_point()] or [first_output(output)]


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error between features of the same shape; scalar, zero where they agree.

    Divided by the mean square of the teacher's (ours), so that one learning rate suits every network.

    Source:
        MiR, arXiv:2201.02620: |f_s - f_t|^2 before global pooling.
    """
    scale = teacher.square().mean().clamp_min(torch.finfo(teacher.dtype).tiny)
    return F.mse_loss(student, teacher) / scale
