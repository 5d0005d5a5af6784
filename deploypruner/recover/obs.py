"""Which input channels a layer can do without, and what is lost when the rest is solved anew: exact, from X^T X.

For a layer Y = X W with H = X^T X, removing the rows S of W and solving the others anew leaves the error
tr(W_S^T [(H^-1)_SS]^-1 W_S); the update W - H^-1_{:,S} [(H^-1)_SS]^-1 W_S is that solution, and H^-1 without S
follows by a low-rank change. So channels go one by one, always the one whose loss is least.

Source:
    Meng et al., "OSSCAR", arXiv:2403.12983 (there with a factor of one half); Kurtic et al., "ZipLM",
    arXiv:2302.04089. Ours: rows that always stay, for the bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploypruner.errors import InputError


@dataclass(frozen=True)
class Elimination:
    """Channels in the order they went.

    Args:
        order: Channels, the first to go first.
        errors: errors[n] is |Y - X W'|^2 without the first n channels, the others solved anew; starts with 0.
    """

    order: NDArray[np.int64]
    errors: NDArray[np.float64]

    def kept(self, count: int) -> NDArray[np.int64]:
        """The last `count` channels to go, by number."""
        return np.sort(self.order[len(self.order) - count :])


def eliminate(gram: Tensor, weight: Tensor, channels: Sequence[Tensor], *, ridge: float = 1e-6) -> Elimination:
    """Remove input channels one by one, each time the one that costs least once the others are solved anew.

    Args:
        gram: X^T X [K, K], as `NormalEquations` sums it, with a row for the bias where there is one.
        weight: What X is multiplied with [K, O].
        channels: Rows of `weight` that each channel owns; rows of none, such as the bias, always stay.
        ridge: Added to the diagonal, relative to its mean, > 0: columns that repeat each other have no inverse.

    Raises:
        InputError: Sums that are not finite.
    """
    if not bool(torch.isfinite(gram).all() and torch.isfinite(weight).all()):
        raise InputError("the sums over a layer's inputs are not finite", hint="check the data for NaN and infinity")
    system, left = gram.double(), weight.double().clone()
    system = system + ridge * system.diagonal().mean() * torch.eye(len(system), dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(system))
    remaining, order, errors = list(range(len(channels))), [], [0.0]
    while remaining:
        losses = [_loss(inverse, left, channels[channel]) for channel in remaining]
        best = int(np.argmin(losses))
        channel = remaining.pop(best)
        order.append(channel)
        errors.append(errors[-1] + losses[best])
        rows = channels[channel]
        factor = torch.linalg.solve(inverse[rows][:, rows], inverse[rows])  # [S, K]
        left -= factor.mT @ left[rows]
        inverse = inverse - inverse[:, rows] @ factor
        # What is gone couples to nothing any more; rounding would bring it back.
        left[rows], inverse[rows], inverse[:, rows] = 0, 0, 0
    return Elimination(np.array(order, np.int64), np.array(errors))


def _loss(inverse: Tensor, weight: Tensor, rows: Tensor) -> float:
    """tr(W_S^T [(H^-1)_SS]^-1 W_S)."""
    part = weight[rows]
    return float((part * torch.linalg.solve(inverse[rows][:, rows], part)).sum())
