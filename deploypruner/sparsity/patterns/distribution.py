"""How a network's sparsity is spread over its layers.

Source: Ghosh et al., "Pruning Compact ConvNets for Efficient Inference", arXiv:2301.04502, compare one threshold on
|w| for the whole network (global magnitude) with the same sparsity in every layer (uniform magnitude). Ours: both for
units of any pattern, where a unit counts by its mean saliency, and the unit every layer keeps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploypruner.errors import RecipeError, nearest
from deploypruner.recipe.sparse import DISTRIBUTIONS
from deploypruner.sparsity.patterns import Pattern


def units_to_keep(pattern: Pattern, saliencies: Sequence[Tensor], sparsity: float, *, distribution: str) -> list[int]:
    """How many units stay in every row of each layer.

    Args:
        pattern: Its own sparsity, where it has one, holds for every layer.
        saliencies: One per layer, [O, I, *kernel], comparable across layers.
        sparsity: Share of the weights that become zero, in (0, 1).
        distribution: See `DISTRIBUTIONS`. As many units stay as fit into the weights that may, so that the sparsity
            is never below what was asked, except that a layer keeps one unit.

    Raises:
        RecipeError: Unknown distribution.
    """
    if distribution not in DISTRIBUTIONS:
        raise RecipeError(f"no distribution called '{distribution}'", hint=nearest(distribution, DISTRIBUTIONS))
    cuts = [pattern.units(saliency) for saliency in saliencies]
    if pattern.sparsity is not None:
        return [cut.per_row - round(pattern.sparsity * cut.per_row) for cut in cuts]
    totals = [cut.total(s.double()).flatten().cpu() for cut, s in zip(cuts, saliencies, strict=True)]
    sizes = [cut.sizes().flatten().cpu() for cut in cuts]
    if distribution == "uniform":
        staying = [allowed(int(size.sum()), sparsity) for size in sizes]
    else:
        staying = _above_threshold(totals, sizes, sparsity)
    return [_fitting(*layer) for layer in zip(totals, sizes, staying, strict=True)]


def allowed(weights: int, sparsity: float) -> int:
    """How many of so many weights may stay."""
    return weights - round(sparsity * weights)


def _above_threshold(totals: Sequence[Tensor], sizes: Sequence[Tensor], sparsity: float) -> list[int]:
    """Weights of each layer in the units with the largest mean saliency of the network."""
    all_sizes = torch.cat(list(sizes))
    owner = torch.cat([torch.full_like(size, i) for i, size in enumerate(sizes)])
    order = (torch.cat(list(totals)) / all_sizes).argsort(descending=True, stable=True)
    staying = order[all_sizes[order].cumsum(0) <= allowed(int(all_sizes.sum()), sparsity)]
    weights = torch.bincount(owner[staying], weights=all_sizes[staying].double(), minlength=len(sizes))
    return [round(count) for count in weights.tolist()]


def fitting(running: Tensor, weights: int) -> int:
    """How many of the largest units hold at most so many weights; at least one.

    Args:
        running: [n] weights in the largest 1, 2, ... units.
        weights: That may stay.
    """
    return max(1, int((running <= weights).sum()))


def _fitting(totals: Tensor, sizes: Tensor, weights: int) -> int:
    return fitting(sizes[totals.argsort(descending=True, stable=True)].cumsum(0), weights)
