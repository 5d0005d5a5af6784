"""Hessian: how much the loss would curve up if the channel's weights went to zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Effort, Needs, Normalizer, at_least_one, criteria
from deploypruner.records import MemberView


@criteria.register("hessian")
@dataclass(frozen=True)
class Hessian(Criterion):
    """Second-order loss change of setting a channel's weights to zero, one by one (OBD).

        s[c] = sum_m sum_f  1/2 H_ff W_m[c, f]^2

    over all members of the group. The diagonal of the Hessian is estimated without the Hessian: for a vector v of
    random signs, the expectation of v * (H v) is diag(H), and H v is one more backward pass.

    Args:
        probes: Random vectors per minibatch; the estimate's error falls with their square root.

    Raises:
        RecipeError: probes < 1.

    Source:
        LeCun, Denker and Solla, "Optimal Brain Damage", NIPS 1989: the saliency of one weight, which leaves out
        the gradient and all cross terms. The estimate of the diagonal is Bekas, Kokiopoulou and Saad, "An estimator
        for the diagonal of a matrix", Applied Numerical Mathematics 57, 2007. Ours: the sum over a coupled group, as
        it comes: off a minimum the curvature, and with it the score, may be negative.
    """

    needs: ClassVar[Needs] = Needs.CURVATURE
    normalizer: ClassVar[Normalizer] = "per_mac"

    probes: int = 1

    def __post_init__(self) -> None:
        at_least_one("probes", self.probes)

    @property
    def effort(self) -> Effort:
        """As many probes as asked for."""
        return Effort(probes=self.probes)

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        parts = [(m.weight.square() * m.curvature).sum(dim=1) for m in members if m.curvature is not None]
        return torch.stack(parts).sum(dim=0) / 2
