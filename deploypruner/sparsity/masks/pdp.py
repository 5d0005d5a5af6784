"""PDP: masks that follow from the weights alone, softly around a threshold. Nothing is learned beside the weights.

Source:
    Cho, Adya, Naik, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023, arXiv:2305.11203.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploypruner.sparsity.masks.hard import Keep, rows_of

# 0.04 Var(w) is 1e-4, the value third parties report for the paper, where weights have a deviation of 0.05.
_SHARE = 0.04


def pdp_mask(q: Tensor, keep: Keep, tau: float | Tensor) -> Tensor:
    """Chance to be kept of every entry: `m = sigmoid((q^2 - t^2) / tau)`, `[..., n]` in [0, 1].

    t is the midpoint of the `keep`-th and the next largest q of a row, recomputed from the q given and without a
    gradient, so that d(m q)/dq = m + (2 q^2 / tau) m (1 - m). At t the mask is 1/2; what is larger goes to 1.

    Args:
        q: Magnitudes `[..., n]`, >= 0: |w|, or the root mean square of a channel's weights.
        keep: How many entries of a row shall stay, one number or one for every row `[...]`. A row that keeps
            nothing, or everything, has a mask of zeros, or of ones.
        tau: Temperature > 0 in the unit of q^2, one number or one for every row.

    Source:
        The paper's mask (the softmax of w^2 and t^2) and threshold; t without gradient is ours.
    """
    n, count = q.shape[-1], rows_of(keep, q)[..., None]
    descending = q.detach().sort(dim=-1, descending=True).values
    inner = count.clamp(1, max(n - 1, 1))
    below = inner.clamp(max=n - 1)  # a row of one entry has no next one
    threshold = 0.5 * (descending.gather(-1, inner - 1) + descending.gather(-1, below))
    heat = torch.as_tensor(tau, dtype=q.dtype, device=q.device)
    soft = torch.sigmoid((q.square() - threshold.square()) / (heat[..., None] if heat.ndim else heat))
    return torch.where(count <= 0, torch.zeros_like(soft), torch.where(count >= n, torch.ones_like(soft), soft))


def pdp_temperature(q: Tensor, *, share: float = _SHARE) -> Tensor:
    """A temperature in the unit of q^2, a scalar without gradient: `share * std(q^2) / sqrt(2)` over all entries.

    Ours. For normally distributed weights and q = |w|, std(q^2) = sqrt(2) Var(w), so this is 0.04 Var(w); for the
    norms of channels, which lie close to each other, it is as much narrower as they do.

    Args:
        q: Magnitudes of one layer or group, any shape.
        share: Dimensionless; larger is softer.
    """
    squared = q.detach().square().double()
    spread = squared.std(correction=0) / 2**0.5 if squared.numel() else squared.new_zeros(())
    return (share * spread).clamp_min(torch.finfo(torch.float32).tiny).to(q.dtype)


def root_mean_square(rows: Sequence[Tensor]) -> Tensor:
    """Magnitude q `[C]` of channels that live in several layers: in the unit of a weight, whatever their number.

    Args:
        rows: `[C, F]` weights of each channel, one tensor a layer; every weight counts the same.
    """
    squares = torch.stack([row.square().sum(dim=1) for row in rows]).sum(dim=0)
    mean = squares / sum(row.shape[1] for row in rows)
    return mean.clamp_min(torch.finfo(mean.dtype).tiny).sqrt()
