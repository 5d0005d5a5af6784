"""Which channels a group can do without, and what is lost when their readers are solved anew: exact, from X^T X.

For a layer Y = X W with H = X^T X, removing the rows S of W and solving the others anew leaves the error
tr(W_S^T [(H^-1)_SS]^-1 W_S); the update W - H^-1_{:,S} [(H^-1)_SS]^-1 W_S is that solution, and H^-1 without S
follows by a low-rank change. So channels go a few at a time, always those whose loss is least.

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
        ridge: Added to the diagonal of `gram`, relative to its mean, where the samples say too little.
    """

    gram: Tensor
    weight: Tensor
    rows: Tensor
    ridge: float = 0.0


@dataclass(frozen=True)
class Elimination:
    """Channels in the order they went.

    Args:
        order: Channels, the first to go first.
        gone: How many were gone after each step, beginning with 0.
        errors: After each step, the sum over readers of |Y - X W'|^2 / |Y|^2 with the others solved anew.
    """

    order: NDArray[np.int64]
    gone: NDArray[np.int64]
    errors: NDArray[np.float64]


def eliminate(readers: Sequence[Reader], *, steps: int = 64, ridge: float = 1e-6) -> Elimination:
    """Remove channels, each time those that cost least alone once the others are solved anew.

    Args:
        readers: At least one, all of the same C channels.
        steps: To remove all of them in; with C or more they go one by one.
        ridge: The least that is added to every diagonal, relative to its mean, > 0: columns that repeat each other
            have no inverse. More where rounding asks for it.

    Raises:
        InputError: Sums that are not finite.
    """
    states = [_State(reader, ridge) for reader in readers]
    left = torch.arange(len(readers[0].rows))
    at_a_time = max(1, len(left) // steps)
    order, gone, errors = list[int](), [0], [0.0]
    while len(left):
        losses = torch.stack([state.losses(left) for state in states]).sum(dim=0)
        places = losses.argsort(stable=True)
        going, left = left[places[:at_a_time]], left[places[at_a_time:].sort().values]
        errors.append(errors[-1] + sum(state.remove(going) for state in states))
        order += going.tolist()
        gone.append(len(order))
    return Elimination(np.array(order, np.int64), np.array(gone, np.int64), np.array(errors))


class _State:
    """One reader with what is left of it."""

    def __init__(self, reader: Reader, ridge: float) -> None:
        gram, self.weight, self.rows = reader.gram.double(), reader.weight.double().clone(), reader.rows
        if not bool(torch.isfinite(gram).all() and torch.isfinite(self.weight).all()):
            raise InputError(
                "the sums over a layer's inputs are not finite", hint="check the data for NaN and infinity"
            )
        tiny, ridge = torch.finfo(torch.float64).tiny, max(ridge, reader.ridge)
        self.size = float((self.weight * (gram @ self.weight)).sum().clamp_min(tiny))
        unit = torch.eye(len(gram), dtype=torch.float64) * gram.diagonal().mean().clamp_min(tiny)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * unit)
        while failed:  # sums in float32 of fewer rows than columns
            ridge *= 10
            factor, failed = torch.linalg.cholesky_ex(gram + ridge * unit)
        self.inverse = torch.cholesky_inverse(factor)

    def losses(self, channels: Tensor) -> Tensor:
        """tr(W_S^T [(H^-1)_SS]^-1 W_S) / |Y|^2 for each of some channels."""
        rows = self.rows[channels]
        part = self.weight[rows]
        blocks = self.inverse[rows[:, :, None], rows[:, None, :]]
        return (part * torch.linalg.solve(blocks, part)).sum(dim=(1, 2)) / self.size

    def remove(self, channels: Tensor) -> float:
        """Solve the others anew without these; what that adds to |Y - X W'|^2 / |Y|^2."""
        rows = self.rows[channels].flatten()
        across, part = self.inverse[rows], self.weight[rows]
        factor = torch.linalg.solve(across[:, rows], torch.cat([across, part], dim=1))  # [S, K + O]
        lost = float((part * factor[:, len(self.inverse) :]).sum()) / self.size
        factor = factor[:, : len(self.inverse)]
        self.weight -= factor.mT @ part
        self.inverse -= across.mT @ factor
        # What is gone couples to nothing any more; rounding would bring it back.
        self.weight[rows], self.inverse[rows], self.inverse[:, rows] = 0, 0, 0
        return lost
