"""How much of the removal is in force after a part of the training."""

from __future__ import annotations

import torch
from torch import Tensor

from deploypruner.sparsity.masks.hard import Keep


def linear_ramp(progress: float, *, start: float = 0.16, end: float = 0.83) -> float:
    """0 until `start`, 1 from `end`, straight in between; all are fractions of the training in [0, 1].

    Source:
        PDP, arXiv:2305.11203: epochs 0 to 15 dense, then 1.5 % of the target more every epoch. Ours: as fractions of
        100 epochs, so that short trainings get the same form.
    """
    return _part(progress, start, end)


def cubic_ramp(progress: float, *, start: float = 0.0, end: float = 0.7) -> float:
    """`1 - (1 - x)^3` where x goes from 0 at `start` to 1 at `end`: much at first, little at the end.

    Source:
        Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, section 3, equation (1).
    """
    return 1 - (1 - _part(progress, start, end)) ** 3


def ramped_keep(size: int, keep: Keep, share: float) -> Tensor:
    """How many of `size` stay with `share` of the removal in force: `size - round(share * (size - keep))`, int64."""
    going = size - torch.as_tensor(keep)
    return size - (share * going.double()).round().long()


def _part(progress: float, start: float, end: float) -> float:
    assert 0 <= start < end <= 1, f"a ramp goes up between 0 and 1, not from {start} to {end}"
    return min(1.0, max(0.0, (progress - start) / (end - start)))
