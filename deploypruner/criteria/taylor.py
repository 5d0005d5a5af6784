"""Taylor: how much the loss would change if the channel's gate were closed, to first order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.criteria import Criterion, Needs, Normalizer, criteria
from deploypruner.records import MemberView


@criteria.register("taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """Squared first-order loss change of closing a channel's gate after batch norm, averaged over minibatches.

        s[c] = mean_b ( sum_m dL_b / dz_m[c] )^2,   dL/dz = gamma dL/dgamma + beta dL/dbeta

    One gate z = 1 is shared by all members through which the channel leaves (several in a residual stream), so
    by the chain rule its derivative is their signed sum. Without batch norm the gate sits on the producing
    layer's output.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771: the
        gate after batch norm, the square, and the average over minibatches. The identity for dL/dz and the
        signed sum over coupled members are what the same authors' HALP computes. Ours: scoring once on a trained
        network in inference mode instead of while training, and ranking by loss change per saved MAC.
    """

    needs: ClassVar[Needs] = Needs.GATES
    normalizer: ClassVar[Normalizer] = "per_mac"

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        gates = [m.gate for m in members if m.gate is not None]
        if not gates:  # a group of computed weights only: nothing to gate, nothing to prefer
            return torch.ones(len(members[0].weight))
        return torch.stack(gates).sum(dim=0).square().mean(dim=0)
