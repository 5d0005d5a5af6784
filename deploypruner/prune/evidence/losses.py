"""The loss of a scoring minibatch, with or without labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree


def target_of(output: Any, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """What the model's first output is compared with.

    The labels of a classifier. Without labels they are drawn from the model's own prediction (classifiers), or from
    a unit Gaussian around it (everything else), so that the mean squared gradient estimates the Fisher information.

    Args:
        output: Of the model, on any device.
        labels: `[B]` classes, or None.
        generator: On the CPU, so that every device draws the same.
    """
    first = _first(output).detach()
    if first.ndim == 2 and first.shape[1] > 1:
        if labels is None:
            labels = torch.multinomial(first.softmax(1).float().cpu(), 1, generator=generator).squeeze(1)
        return labels.to(first.device)
    return first + torch.randn(first.shape, generator=generator, dtype=first.dtype).to(first.device)


def loss_of(output: Any, target: Tensor) -> Tensor:
    """Mean loss over the samples: cross-entropy for classes, half the squared distance for everything else."""
    first = _first(output)
    if not target.is_floating_point():
        return functional.cross_entropy(first, target)
    return 0.5 * functional.mse_loss(first, target, reduction="sum") / len(first)


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
