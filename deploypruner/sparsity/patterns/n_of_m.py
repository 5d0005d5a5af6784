"""N:M: of every M neighbouring inputs, N stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.errors import RecipeError
from deploypruner.sparsity.patterns import Pattern, Units, as_weight, by_tap, patterns


@patterns.register("N:M")
@dataclass(frozen=True)
class NOfM(Pattern):
    """N of every M neighbouring inputs stay, written in numbers: 2:4, 1:4; the sparsity is 1 - N / M.

    Source: Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, arXiv:2104.08378 (2:4).

    Args:
        n: Weights that stay of each M, 1 <= n < m.
        m: Length of a run of neighbouring inputs.

    Raises:
        RecipeError: Nothing would be zero, or everything.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise RecipeError(
                f"pattern {self} must keep at least 1 and fewer than {self.m} of {self.m} weights",
                hint="2:4 keeps two of every four",
            )

    def __str__(self) -> str:
        return f"{self.n}:{self.m}"

    @property
    def sparsity(self) -> float:  # type: ignore[override]  # its numbers say it, so it belongs to the instance
        """1 - N / M."""
        return 1 - self.n / self.m

    def units(self, saliency: Tensor) -> Units:
        """Every weight is a unit; every run of M is a row of its own."""
        self.ragged(saliency.shape[1])
        shape = by_tap(saliency).shape
        count = saliency.numel()
        index = torch.arange(count, device=saliency.device).view(shape)
        return Units(as_weight(index, saliency.shape), count // self.m, self.m)

    def ragged(self, inputs: int) -> str:
        """Refused: the hardware reads whole runs."""
        if inputs % self.m:
            raise RecipeError(
                f"{inputs} inputs are no multiple of {self.m}, which pattern {self} needs",
                hint=f"leave the layer dense with --sparse-exclude, or let widths be multiples: --step {self.m}",
            )
        return ""
