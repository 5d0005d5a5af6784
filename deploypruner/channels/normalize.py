"""Normalizers: what makes the scores of one group comparable with those of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.channels.criteria import Normalizer
from deploypruner.records import Group
from deploypruner.registries import normalizers


@dataclass(frozen=True)
class Normalization:
    """One way to do it.

    Args:
        apply: (`[C]` scores, group) -> `[C]`; the order within a group never changes. Negative scores (of criteria
            that keep a sign) count by their size where a group is divided by something.
        adds_up: Are the results amounts that may be summed over channels? A budget of time is met by the largest sum,
            a budget of multiply-adds by a threshold.
    """

    apply: Callable[[Tensor, Group], Tensor]
    adds_up: bool = True


def _divided(score: Tensor, by: Tensor) -> Tensor:
    return score / by.clamp_min(torch.finfo(score.dtype).tiny)


def _lamp(score: Tensor, group: Group) -> Tensor:
    """Each score over the sum of itself and all that are larger; equal ones in the order of channels."""
    order = torch.argsort(score, stable=True)
    ascending = score[order].clamp_min(0)
    remaining = ascending.flip(0).cumsum(0).flip(0)
    found = torch.empty_like(score)
    found[order] = _divided(ascending, remaining)
    return found


def _standard(score: Tensor, group: Group) -> Tensor:
    return _divided(score - score.mean(), score.std(correction=0))


normalizers.register("none", about="scores as they are")(Normalization(lambda score, group: score))
normalizers.register("mean", about="divided by the mean of the group")(
    Normalization(lambda score, group: _divided(score, score.abs().mean()))
)
normalizers.register("max", about="divided by the largest of the group")(
    Normalization(lambda score, group: _divided(score, score.abs().max()))
)
normalizers.register("sum", about="divided by the sum over the group")(
    Normalization(lambda score, group: _divided(score, score.abs().sum()))
)
normalizers.register("standard", about="mean 0 and standard deviation 1 in every group")(
    Normalization(_standard, adds_up=False)
)
normalizers.register(
    "lamp", about="divided by the sum of all scores of the group that are not smaller (LAMP, arXiv:2010.07611)"
)(Normalization(_lamp))
normalizers.register(
    "per_mac", about="divided by the multiply-adds one channel costs: the least loss per multiply-add goes first"
)(Normalization(lambda score, group: score / max(group.macs_per_channel, 1.0)))


def comparable(score: Tensor, group: Group, normalizer: Normalizer) -> Tensor:
    """`[C]` scores of one group so that they can be compared with those of another.

    Args:
        score: `[C]`, larger means keep.
        group: What they belong to.
        normalizer: A registered name.

    Source:
        LAMP is Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, arXiv:2010.07611,
        for squared weights of a layer; ours: the scores of a group in their place. "per_mac" is ours.

    Raises:
        RecipeError: No such normalizer.
    """
    return normalizers.get(normalizer).apply(score, group)
