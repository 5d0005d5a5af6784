"""Removing channels with the rest solved anew: the closed form agrees with solving from nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.recover.obs import Reader, eliminate


def layer(channels: int = 5, patch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs of a convolution with a bias column, its weights, and the rows of each channel."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(channels * patch, channels * patch, generator=generator, dtype=torch.float64)
    x = torch.randn(200, channels * patch, generator=generator, dtype=torch.float64) @ mixed + 0.5
    x = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    w = torch.randn(channels * patch + 1, 4, generator=generator, dtype=torch.float64)
    return x, w, torch.arange(channels * patch).view(channels, patch)


def solved(x: Tensor, w: Tensor, gone: list[int], channels: Tensor) -> float:
    """|Y - X W'|^2 with some channels gone, by numpy."""
    rows = np.setdiff1d(np.arange(x.shape[1]), np.concatenate([channels[c].numpy() for c in gone]))
    y, kept = (x @ w).numpy(), x.numpy()[:, rows]
    solution, *_ = np.linalg.lstsq(kept, y, rcond=None)
    return float(np.square(y - kept @ solution).sum())


def test_errors_and_order_are_those_of_solving_every_choice_anew() -> None:
    x, w, channels = layer()
    found = eliminate([Reader(x.mT @ x, w, channels)], ridge=1e-12)
    gone, size = list[int](), float((x @ w).square().sum())
    for step, channel in enumerate(found.order.tolist()):
        costs = {c: solved(x, w, [*gone, c], channels) for c in range(len(channels)) if c not in gone}
        assert channel == min(costs, key=costs.__getitem__)
        assert found.errors[step + 1] * size == pytest.approx(costs[channel], rel=1e-6)
        gone.append(channel)
    assert found.errors[0] == 0


def test_a_channel_that_another_repeats_goes_first_and_costs_nothing() -> None:
    x, w, channels = layer()
    x[:, channels[3]] = 2 * x[:, channels[1]]
    found = eliminate([Reader(x.mT @ x, w, channels)])
    assert found.order[0] in (1, 3)
    assert found.errors[1] < 1e-3 * found.errors[2]


def test_sums_that_are_not_finite_are_refused() -> None:
    x, w, channels = layer()
    with pytest.raises(InputError, match="not finite"):
        eliminate([Reader(x.mT @ x * torch.nan, w, channels)])
