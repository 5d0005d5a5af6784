"""Sparse weights while training: masks of a pattern as a regime; `deploypruner.schedules` has one for each."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deploypruner.graph.execute.module import get_state
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.sparsity.patterns import Pattern, Units
from deploypruner.sparsity.patterns.distribution import units_to_keep
from deploypruner.train.regime import Regime

DEFAULT_SPARSITY = 0.8


@dataclass(frozen=True)
class Assigned:
    """What one layer was assigned under "auto".

    Args:
        pattern: One whose sparsity is chosen.
        sparsity: Share of the layer's weights that become zero, in (0, 1).
    """

    pattern: Pattern
    sparsity: float


class SparseRegime(Regime):
    """Zeros in a pattern: soft or growing at first, hard and fixed in the last part of the training.

    How many units of each layer stay is decided once, from the magnitudes the training begins with. The saliency of a
    weight is its square: the mask of the largest sum is the closest one in the least-squares sense.

    Args:
        weights: Names of the parameters that become sparse.
        pattern: Which masks are allowed, for all of them with the sparsity of the settings, or for each of them with
            a sparsity of its own.
        settings: The recipe.

    Attributes:
        trains: False for a schedule that does not need training.
        keep: Parameter name -> units that stay in each row; known after `begin`.
        masks: Parameter name -> bool mask in force, once masks are hard.
        held: Whether masks are fixed.
    """

    trains: ClassVar[bool] = True

    def __init__(
        self, weights: Sequence[str], pattern: Pattern | Mapping[str, Assigned], settings: SparseSettings
    ) -> None:
        self.settings = settings
        self._pattern = pattern
        self.keep: dict[str, int] = {}
        self.masks: dict[str, Tensor] = {}
        self.held = False
        self._names = tuple(weights)
        self._student = nn.Module()
        self._steps = 1

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that follow the pattern."""
        return self._names

    def pattern_of(self, name: str) -> Pattern:
        """The pattern one parameter follows."""
        return self._pattern if isinstance(self._pattern, Pattern) else self._pattern[name].pattern

    def sparsity_of(self, name: str) -> float:
        """Share of one parameter's weights that was asked to become zero; of all parameters together for a pattern
        that all share, unless the distribution is uniform.
        """
        if not isinstance(self._pattern, Pattern):
            return self._pattern[name].sparsity
        own = self._pattern.sparsity
        return own if own is not None else self.settings.sparsity or DEFAULT_SPARSITY

    def begin(self, student: nn.Module, steps: int) -> None:
        """Decide how many units stay in each layer."""
        self._student, self._steps = student, max(1, steps)
        self.held, self.masks = False, {}
        self.keep = self._counts()

    def weights(self, step: int) -> dict[str, Tensor]:
        """Masked weights for the forward pass of `step`."""
        progress = step / self._steps
        if not self.held and progress >= self.settings.held:
            self.hold()
        if not self.held:
            self.advance(progress, step)
        return {name: self._masked(name) if self.held else self.soft(name, progress) for name in self._names}

    def hold(self) -> None:
        """Make the masks hard and fix them."""
        self.masks, self.held = self._final_masks(), True

    def hard_weights(self) -> dict[str, Tensor]:
        """Weights with exactly the zeros the training would end with."""
        masks = self.masks if self.held else self._final_masks()
        return {name: _where(mask, self.weight(name).detach()) for name, mask in masks.items()}

    def state(self) -> dict[str, Tensor]:
        """The masks in force, and whether they are fixed."""
        return {"held": torch.tensor(self.held), **{f"mask.{name}": mask for name, mask in self.masks.items()}}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put the masks back."""
        self.held = bool(state["held"])
        found = {name: state.get(f"mask.{name}") for name in self._names}
        self.masks = {name: mask.to(self.weight(name).device) for name, mask in found.items() if mask is not None}

    def describe(self) -> str:
        """Schedule, pattern, settings and layers."""
        of = self._pattern if isinstance(self._pattern, Pattern) else dict(self._pattern)
        return f"{type(self).__name__} {of} {self.settings} {self._names}"

    # ------------------------------------------------------------------ for schedules

    def advance(self, progress: float, step: int) -> None:
        """Once a step before `soft`, while masks are not fixed; `progress` is the share of the training in [0, 1)."""

    @abstractmethod
    def soft(self, name: str, progress: float) -> Tensor:
        """What takes the place of one weight while masks are not fixed, with gradients."""

    def final_mask(self, name: str) -> Tensor:
        """The bool mask of the full sparsity that one weight would get now; magnitude unless overridden."""
        saliency = self.weight(name).detach().square()
        return self.pattern_of(name).units(saliency).mask(saliency, self.keep[name])

    def weight(self, name: str) -> Tensor:
        """The trained parameter."""
        found: Tensor = get_state(self._student, name)
        return found

    def units(self, name: str) -> Units:
        """Its units, by magnitude."""
        return self.pattern_of(name).units(self.weight(name).detach().square())

    def _counts(self) -> dict[str, int]:
        """Units that stay in each row of each parameter."""
        saliencies = {name: self.weight(name).detach().square() for name in self._names}
        if isinstance(self._pattern, Pattern):
            share, spread = self.sparsity_of(self._names[0]), self.settings.distribution
            counts = units_to_keep(self._pattern, list(saliencies.values()), share, distribution=spread)
            return dict(zip(self._names, counts, strict=True))
        return {
            name: units_to_keep(found.pattern, [saliencies[name]], found.sparsity, distribution="uniform")[0]
            for name, found in self._pattern.items()
        }

    def _masked(self, name: str) -> Tensor:
        return _where(self.masks[name], self.weight(name))

    def _final_masks(self) -> dict[str, Tensor]:
        return {name: self.final_mask(name) for name in self._names}


def _where(mask: Tensor, weight: Tensor) -> Tensor:
    """Plain zeros, never -0, where the mask is False."""
    return torch.where(mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))
