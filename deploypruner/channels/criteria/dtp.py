"""DTP: scores that are learned with the weights decide which channels an optimal transport sends to "kept"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria
from deploypruner.channels.criteria.taylor import Taylor
from deploypruner.errors import RecipeError
from deploypruner.records import MemberView


@criteria.register("dtp")
@dataclass(frozen=True)
class Dtp(Criterion):
    """Learned: masks from an optimal transport between trained scores and the number that stays; hardens by itself.

    Before training the score is that of `taylor`, which chooses the widths; training chooses the channels, from
    equal scores.

    Args:
        lr: Step of Adam on the scores, > 0.
        beta: Temperature in the unit of the scores, >= 0; larger hardens later, 0 follows from the number of steps.

    Raises:
        RecipeError: A value out of its range.

    Source:
        Li et al., "Differentiable Transportation Pruning", ICCV 2023, arXiv:2307.08483: learned scores, transport to
        a Bernoulli target, one Sinkhorn iteration per minibatch, ratios of layers given beforehand. Ours: the
        equations (see `masks.transport`), the mask on gamma and beta of the batch norm, the defaults, hard masks in
        the last tenth of the training, and what the widths come from.
    """

    needs: ClassVar[Needs] = Needs.GATES
    normalizer: ClassVar[Normalizer] = Taylor.normalizer
    learned: ClassVar[bool] = True

    lr: float = 0.01
    beta: float = 0.0

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise RecipeError(f"criterion.lr must be > 0, got {self.lr:g}", hint="0.01 suits most models")
        if self.beta < 0:
            raise RecipeError(
                f"criterion.beta must be at least 0, got {self.beta:g}", hint="0 lets the number of steps decide"
            )

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        return Taylor().score(members)
