"""Oracle: the loss without the channel, measured. Slow, and the yardstick of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Effort, Needs, Normalizer, at_least_one, criteria
from deploypruner.records import MemberView


@criteria.register("oracle")
@dataclass(frozen=True)
class Oracle(Criterion):
    """Squared loss change of removing one channel and no other; one forward pass per channel and minibatch.

        s[c] = ( E(without c) - E )^2,   or without the square where `signed`

    Args:
        batches: Minibatches the loss is taken over.
        signed: Keep the sign: a channel without which the loss is smaller goes first.

    Raises:
        RecipeError: batches < 1.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771, equation
        (3), taken over whole channels. Ours: every weight of the coupled group is set to zero, which is what
        removing it does, except where a layer or group norm averages over the channels.
    """

    needs: ClassVar[Needs] = Needs.LOSS
    normalizer: ClassVar[Normalizer] = "per_mac"

    batches: int = 4
    signed: bool = False

    def __post_init__(self) -> None:
        at_least_one("batches", self.batches)

    @property
    def effort(self) -> Effort:
        """As many batches as asked for."""
        return Effort(batches=self.batches)

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        closing = members[0].channels.closing
        if closing is None:
            return torch.ones(len(members[0].weight))
        change = closing.mean(dim=0)
        return change if self.signed else change.square()
