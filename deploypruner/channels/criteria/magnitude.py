"""Magnitude: a channel whose weights are small changes the output little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria, layers, mean_of_shares
from deploypruner.errors import RecipeError
from deploypruner.records import MemberView


@criteria.register("magnitude")
@dataclass(frozen=True)
class Magnitude(Criterion):
    """Mean over the group's layers of the p-norm mass of each channel's weights.

        s[c] = mean_m  sum_f |W_m[c, f]|^p / mean_c' sum_f |W_m[c', f]|^p

    Args:
        p: Exponent, dimensionless, > 0. 1 is the paper's choice, 2 is energy.

    Raises:
        RecipeError: p <= 0.

    Source:
        Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, arXiv:1608.08710, section 3: the sum of
        absolute weights of one filter. Ours: the mean over all coupled layers, producers and consumers alike,
        each divided by its own mean so that a layer with larger fan-in or scale does not outvote the others.
    """

    needs: ClassVar[Needs] = Needs.WEIGHTS
    normalizer: ClassVar[Normalizer] = "mean"

    p: float = 1.0

    def __post_init__(self) -> None:
        if self.p <= 0:
            raise RecipeError(f"criterion.p must be > 0, got {self.p}", hint="use 1 for L1 or 2 for L2")

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        chosen = layers(members, "producer", "consumer")
        return mean_of_shares([m.weight.abs().pow(self.p).sum(dim=1) for m in chosen])
