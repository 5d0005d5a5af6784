"""Batch-norm scale: a channel that its normalisation scales down says little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria, layers
from deploypruner.records import MemberView


@criteria.register("bn_scale")
@dataclass(frozen=True)
class BatchNormScale(Criterion):
    """Mean absolute scale gamma of the normalisations a channel passes through.

        s[c] = mean_m |gamma_m[c]|

    A group without a normalisation has no gamma. It gets the scale that weight normalisation would give its
    producing layers, w = g v / |v|: the L2 norm g of each channel's row, averaged over the producers.

    Source:
        Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017,
        arXiv:1708.06519: |gamma| ranked over the whole network, which is `normalizer = "none"` here. Ours: the mean
        over coupled normalisations (layer norms among them), the substitute for groups without any, and "mean" as
        the default normalizer, because gammas do not compare with norms of weights. No sparsity penalty is trained.
    """

    needs: ClassVar[Needs] = Needs.WEIGHTS
    normalizer: ClassVar[Normalizer] = "mean"

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        scales = [m.weight.abs().mean(dim=1) for m in members if m.role == "norm"]
        if not scales:
            scales = [m.weight.norm(dim=1) for m in layers(members, "producer")]
        return torch.stack(scales).mean(dim=0)
