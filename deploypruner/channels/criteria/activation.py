"""Activation: a channel that is hardly ever on does little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria
from deploypruner.records import MemberView


@criteria.register("activation")
@dataclass(frozen=True)
class Activation(Criterion):
    """What a channel carries to the layers that read it, over the scoring data.

        statistic = "mean":  s[c] = mean |a[c]|
        statistic = "apoz":  s[c] = share of a[c] that is not zero = 1 - APoZ[c]

    It is taken where the channel is consumed: at the input of the convolution, linear layer or attention that reads
    it, after every nonlinearity and addition on the way, averaged over those layers. A channel that nothing of the
    kind reads is taken at the output of its last layer.

    Args:
        statistic: "mean" or "apoz".

    Source:
        APoZ, the average percentage of zeros, is Hu et al., "Network Trimming", arXiv:1607.03250, section 2; the
        mean activation is one of the criteria compared in Molchanov et al., arXiv:1611.06440, section 2.2. Ours: the
        place, the absolute value (not every activation is a ReLU), and the mean over several readers.
    """

    needs: ClassVar[Needs] = Needs.ACTIVATIONS
    normalizer: ClassVar[Normalizer] = "mean"

    statistic: Literal["mean", "apoz"] = "mean"

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        seen = members[0].channels
        score = seen.activation if self.statistic == "mean" else seen.active
        # A group of computed weights only: nothing carries it, nothing to prefer.
        return torch.ones(len(members[0].weight)) if score is None else score
