"""Which channels a group can do without, and what is lost when their readers are solved anew: exact, from X^T X.

For a layer Y = X W with H = X^T X, removing the rows S of W and solving the others anew leaves the error
tr(W_S^T [(H^-1)_SS]^-1 W_S); the update W - H^-1_{:,S} [(H^-1)_SS]^-1 W_S is that solution, and H^-1 without S
follows by a low-rank change. So channels go one by one, always the one whose loss is least.

Source:
    Meng et al., "OSSCAR", arXiv:2403.12983 (there with a factor of one half); Kurtic et al., "ZipLM",
    arXiv:2302.04089. Ours: rows that always stay, for the bias, and channels that several layers read.
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
class Reader:
    """A layer that reads the channels of a group.

    Args:
        gram: X^T X [K, K], as `NormalEquations` sums it, with a row for the bias where there is one.
        weight: What X is multiplied with [K, O].
        rows: [C, S] rows of `weight` that each channel owns; rows of none, such as the bias, always stay.
    """

    gram: Tensor
    weight: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Elimination:
    """Channels in the order they went.

    Args:
        order: Channels, the first to go first.
        errors: errors[n] is the sum over readers of |Y - X W'|^2 / |Y|^2 without the first n channels, the others
            solved anew; starts with 0.
    """

    order: NDArray[np.int64]
    errors: NDArray[np.float64]


def eliminate(readers: Sequence[Reader], *, ridge: float = 1e-6) -> Elimination:
    """Remove channels one by one, each time the one that costs least once the others are solved anew.

    Args:
        readers: At least one, all of the same C channels.
        ridge: Added to the diagonal, relative to its mean, > 0: columns that repeat each other have no inverse.

    Raises:
        InputError: Sums that are not finite.
    """
    states = [_State(reader, ridge) for reader in readers]
    left = torch.arange(len(readers[0].rows))
    order, errors = list[int](), [0.0]
    while len(left):
        losses = torch.stack([state.losses(left) for state in states]).sum(dim=0)
        best = int(losses.argmin())
        order.append(int(left[best]))
        errors.append(errors[-1] + float(losses[best]))
        for state in states:
            state.remove(order[-1])
        left = torch.cat([left[:best], left[best + 1 :]])
    return Elimination(np.array(order, np.int64), np.array(errors))


class _State:
    """One reader with what is left of it."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        gram, self.weight, self.rows = reader.gram.double(), reader.weight.double().clone(), reader.rows
        if not bool(torch.isfinite(gram).all() and torch.isfinite(self.weight).all()):
            raise InputError(
                "the sums over a layer's inputs are not finite", hint="check the data for NaN and infinity"
            )
        tiny = torch.finfo(torch.float64).tiny
        self.size = float((self.weight * (gram @ self.weight)).sum().clamp_min(tiny))
        ridged = gram + torch.eye(len(gram), dtype=torch.float64) * (ridge * gram.diagonal().mean()).clamp_min(tiny)
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged))

    def losses(self, channels: Tensor) -> Tensor:
        """tr(W_S^T [(H^-1)_SS]^-1 W_S) / |Y|^2 for each of some channels."""
        rows = self.rows[channels]
        part = self.weight[rows]
        blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
        return (part * torch.linalg.solve(blocks, part)).sum(dim=(1, 2)) / self.size

    def remove(self, channel: int) -> None:
        """Solve the others anew without it."""
        rows = self.rows[channel]
        factor = torch.linalg.solve(self.inverse[rows][:, rows], self.inverse[rows])  # [S, K]
        self.weight -= factor.mT @ self.weight[rows]
        self.inverse = self.inverse - self.inverse[:, rows] @ factor
        # What is gone couples to nothing any more; rounding would bring it back.
        self.weight[rows], self.inverse[rows], self.inverse[:, rows] = 0, 0, 0
