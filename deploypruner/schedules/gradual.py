"""gradual: on a cubic ramp, channels and weights alike."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.schedules import Schedule, schedules
from deploypruner.sparsity.masks import cubic_ramp, ramped_keep
from deploypruner.sparsity.training import SparseRegime


class GradualMasks(SparseRegime):
    """Sparsity grows along a cubic ramp while training; masks are chosen anew by magnitude at every change.

        s(x) = s_final (1 - (1 - x)^3),   x from 0 at `start` to 1 at `reached`

    A weight without gradient keeps its value, so it may come back while others shrink.

    Source:
        Zhu and Gupta, "To prune, or not to prune", 2017, arXiv:1710.01878, equation (1). Ours: every pattern, in
        whole units; N:M goes down one weight of M at a time.
    """

    def advance(self, progress: float, step: int) -> None:
        """Choose new masks every few steps, and fix them once the ramp is over."""
        settings = self.settings
        if progress >= settings.reached:
            self.hold()
            return
        share = cubic_ramp(progress, start=settings.start, end=settings.reached)
        if self.masks and step % settings.every:
            return
        for name, keep in self.keep.items():
            saliency = self.weight(name).detach().square()
            units = self.pattern_of(name).units(saliency)
            self.masks[name] = units.mask(saliency, int(ramped_keep(units.per_row, keep, share)))

    def soft(self, name: str, progress: float) -> Tensor:
        """The weight under the mask in force."""
        weight = self.weight(name)
        return torch.where(self.masks[name], weight, torch.zeros_like(weight))


@schedules.register("gradual", applies_to=("channels", "weights"))
class GradualSchedule(Schedule):
    """On a cubic ramp while training, ranked anew at every change: widths shrink to the plan's, or zeros grow.

    Source:
        The ramp is that of `GradualMasks`. Ours: 70 % of the training for channels.
    """

    weights: ClassVar[type[SparseRegime] | None] = GradualMasks
    last_ranking: ClassVar[float | None] = 0.7

    @classmethod
    def ramp(cls, share: float) -> float:
        """1 - (1 - share)^3."""
        return cubic_ramp(share, start=0, end=1)
