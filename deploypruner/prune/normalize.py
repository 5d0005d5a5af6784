"""Normalizers: what makes the scores of one group comparable with those of another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.criteria import Normalizer
from deploypruner.errors import RecipeError, nearest
from deploypruner.records import Group


@dataclass(frozen=True)
class Normalization:
    """One way to do it.

    Args:
        about: One line for `deploypruner list normalizers`.
        apply: (`[C]` scores, group) -> `[C]`; the order within a group never changes. Negative scores (of criteria
            that keep a sign) count by their size where a group is divided by something.
        adds_up: Are the results amounts that may be summed over channels? A budget of time is met by the largest sum,
            a budget of multiply-adds by a threshold.
    """

    about: str
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


NORMALIZERS: dict[str, Normalization] = {
    "none": Normalization("scores as they are", lambda score, group: score),
    "mean": Normalization(
        "divided by the mean of the group", lambda score, group: _divided(score, score.abs().mean())
    ),
    "max": Normalization(
        "divided by the largest of the group", lambda score, group: _divided(score, score.abs().max())
    ),
    "sum": Normalization(
        "divided by the sum over the group", lambda score, group: _divided(score, score.abs().sum())
    ),
    "standard": Normalization("mean 0 and standard deviation 1 in every group", _standard, adds_up=False),
    "lamp": Normalization(
        "divided by the sum of all scores of the group that are not smaller (LAMP, arXiv:2010.07611)", _lamp
    ),
    "per_mac": Normalization(
        "divided by the multiply-adds one channel costs: the least loss per multiply-add goes first",
        lambda score, group: score / max(group.macs_per_channel, 1.0),
    ),
}


def comparable(score: Tensor, group: Group, normalizer: Normalizer) -> Tensor:
    """`[C]` scores of one group so that they can be compared with those of another.

    Args:
        score: `[C]`, larger means keep.
        group: What they belong to.
        normalizer: A name of `NORMALIZERS`.

    Source:
        LAMP is Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, arXiv:2010.07611,
        for squared weights of a layer; ours: the scores of a group in their place. "per_mac" is ours.

    Raises:
        RecipeError: No such normalizer.
    """
    return find_normalizer(normalizer).apply(score, group)


def find_normalizer(name: Normalizer) -> Normalization:
    """The normalizer called `name`.

    Raises:
        RecipeError: There is none; the nearest is offered.
    """
    if name not in NORMALIZERS:
        raise RecipeError(f"no normalizer called '{name}'", hint=nearest(name, NORMALIZERS))
    return NORMALIZERS[name]
