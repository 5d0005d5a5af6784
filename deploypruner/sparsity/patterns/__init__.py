"""Sparse patterns: which weights of a layer may be zero together. Adding one is one file in this package.

A pattern sees numbers of a weight's shape, never layer types or the graph. It cuts the weight into *units* that stay
or go as a whole; what a unit is worth is the sum of its weights' saliencies, so that the largest units of every row
are the best mask the pattern allows at that count.

A weight is [O, I] (linear) or [O, I, *kernel] (convolution). Runs of neighbouring inputs are runs of I at one kernel
tap, as in the int8 kernels' NHWC im2col layout, where the input channel is the fastest axis.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.errors import RecipeError
from deploypruner.registries import AUTO, CANDIDATES, CHANNEL, patterns
from deploypruner.sparsity.masks import top_mask


@dataclass(frozen=True)
class Units:
    """A weight cut into units, R rows of n each; the same number of units stays in every row.

    Args:
        index: [weight's shape] int64, the unit of every weight: row * n + place in the row.
        rows: R.
        per_row: n.
    """

    index: Tensor
    rows: int
    per_row: int

    def total(self, values: Tensor) -> Tensor:
        """Sum over each unit, [R, n], differentiable; `values` has the weight's shape."""
        flat = values.new_zeros(self.rows * self.per_row).index_add(0, self.index.flatten(), values.flatten())
        return flat.view(self.rows, self.per_row)

    def sizes(self) -> Tensor:
        """Weights in each unit, [R, n] int64; the last ones of a row of inputs may be narrower."""
        return torch.bincount(self.index.flatten(), minlength=self.rows * self.per_row).view(self.rows, self.per_row)

    def spread(self, per_unit: Tensor) -> Tensor:
        """[R, n] to the weight's shape: every weight gets its unit's value."""
        return per_unit.flatten()[self.index]

    def mask(self, saliency: Tensor, keep: int) -> Tensor:
        """The mask with `keep` units in every row and the largest total saliency that the pattern allows;
        of equal units the first.

        Args:
            saliency: [weight's shape], what `Pattern.units` was given.
            keep: Units that stay in each row.

        Returns:
            [weight's shape] bool, True where the weight stays.
        """
        return self.spread(top_mask(self.total(saliency.double()), keep))


class Pattern(ABC):
    """One family of masks. Subclasses are frozen dataclasses.

    Attributes:
        sparsity: Share of zeros the pattern itself prescribes, None where it is chosen.
    """

    sparsity: ClassVar[float | None] = None

    def __str__(self) -> str:
        return next(name for name in patterns if patterns.get(name) is type(self))

    @abstractmethod
    def units(self, saliency: Tensor) -> Units:
        """Cut a weight into units.

        Args:
            saliency: [O, I, *kernel], at least 0; where it depends on the weights which ones form a unit, these do.
        """

    def ragged(self, inputs: int) -> str:
        """What happens at the end of a row of `inputs` input channels, "" where the pattern divides it.

        Raises:
            RecipeError: The pattern cannot end there.
        """
        return ""


_N_OF_M = "N:M"  # registered under this name, chosen as 2:4


def make_pattern(name: str) -> Pattern:
    """The sparse pattern called `name`: a registered name, or N:M in numbers.

    Raises:
        RecipeError: Unknown name (the nearest is offered), or numbers that make no pattern.
    """
    numbers = re.fullmatch(r"(\d+):(\d+)", name)
    if numbers:
        make: type = patterns.get(_N_OF_M)
        made: Pattern = make(*map(int, numbers.groups()))
        return made
    patterns.check(name)
    return patterns.get(name)()


def sparse_patterns(names: Iterable[str]) -> tuple[Pattern, ...]:
    """The sparse patterns a layer may follow: the one among `names`, all candidates of "auto", none beside "channel".

    Raises:
        RecipeError: No name, a name twice, an unknown one, or two sparse patterns.
    """
    chosen = list(names)
    if not chosen or len(set(chosen)) < len(chosen):
        said = f"names '{max(chosen, key=chosen.count)}' twice" if chosen else "names nothing"
        raise RecipeError(f"--pattern {said}", hint="for example --pattern channel,2:4")
    sparse = [name for name in chosen if name != CHANNEL]
    if len(sparse) > 1:
        raise RecipeError(
            f"a weight follows one sparse pattern, not {' and '.join(sparse)}",
            hint=f"choose one of them; it combines with {CHANNEL}",
        )
    if AUTO in sparse:
        sparse = list(CANDIDATES)
    return tuple(make_pattern(name) for name in sparse)


def by_tap(weight: Tensor) -> Tensor:
    """[O, I, *kernel] -> [O, taps, I], the order in which the kernels read; one tap for a linear layer."""
    return weight.flatten(2).transpose(1, 2) if weight.dim() > 2 else weight.unsqueeze(1)


def as_weight(by_taps: Tensor, shape: torch.Size) -> Tensor:
    """[O, taps, I] -> [O, I, *kernel], the inverse of `by_tap`."""
    # Contiguous: a mask's strides would become those of the masked weight, and decide how convolutions round.
    return by_taps.transpose(1, 2).reshape(shape).contiguous()
