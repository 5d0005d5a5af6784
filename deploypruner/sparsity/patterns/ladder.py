"""One layer's weight at several sparsities of one pattern, its units ranked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.sparsity.patterns import Pattern
from deploypruner.sparsity.patterns.distribution import allowed, fitting


@dataclass(frozen=True)
class Rung:
    """A weight at one sparsity.

    Args:
        sparsity: Share of the weights that may go.
        mask: [weight's shape] bool, True where the weight stays.
        kept: Share of the saliency that stays.
    """

    sparsity: float
    mask: Tensor
    kept: float


def ladder(pattern: Pattern, saliency: Tensor, sparsities: Sequence[float]) -> list[Rung]:
    """The masks that `patterns.distribution` with "uniform" leads to, one for each sparsity.

    Args:
        pattern: One whose sparsity is chosen.
        saliency: [O, I, *kernel], at least 0.
        sparsities: Shares of the weights that become zero, in (0, 1).
    """
    assert pattern.sparsity is None, f"pattern {pattern} says its sparsity itself"  # so all units are in one row
    cut = pattern.units(saliency)
    totals, sizes = cut.total(saliency.double()).flatten(), cut.sizes().flatten()
    order = totals.argsort(descending=True, stable=True)
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order), device=order.device)
    weights, worth = sizes[order].cumsum(0), totals[order].cumsum(0)
    rungs = []
    for sparsity in sparsities:
        keep = fitting(weights, allowed(saliency.numel(), sparsity))
        kept = float(worth[keep - 1] / worth[-1]) if worth[-1] > 0 else 1.0
        rungs.append(Rung(sparsity, cut.spread(places < keep), kept))
    return rungs
