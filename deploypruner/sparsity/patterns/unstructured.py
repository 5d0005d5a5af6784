"""Unstructured: any weight may be zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.sparsity.patterns import Pattern, Units, patterns


@patterns.register("unstructured")
@dataclass(frozen=True)
class Unstructured(Pattern):
    """Any weight of a layer may be zero; the yardstick for all others.

    Source: Han et al., "Learning both Weights and Connections for Efficient Neural Networks", NeurIPS 2015 (the
    pattern of magnitude pruning).
    """

    def units(self, saliency: Tensor) -> Units:
        """Every weight is a unit of its own, in one row."""
        count = saliency.numel()
        return Units(torch.arange(count, device=saliency.device).view(saliency.shape), 1, count)
