"""pdp: soft masks that follow from the weights alone."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.schedules import Schedule, schedules
from deploypruner.sparsity.masks import linear_ramp, pdp_mask, pdp_temperature, ramped_keep
from deploypruner.sparsity.training import SparseRegime

_LEAST = 1e-30  # of a mean square, so that its root has a gradient


class PdpMasks(SparseRegime):
    """Soft masks around a magnitude threshold that is found anew in every step, on a linear ramp.

        w' = m w,   m = sigmoid((q^2 - t^2) / tau),   q = root mean square of the weight's unit

    q is |w| for single weights; t lies between the smallest unit that stays and the largest that goes. For N:M, where
    a part of a weight cannot be kept, the ramp blends: w' = (1 - a) w + a m w.

    Source:
        Cho et al., "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023, arXiv:2305.11203: the
        mask, the global split of the target over the layers, the ramp, N:M with a threshold for each group. Ours:
        whole units of other patterns by their root mean square, the blend, the temperature in variances, and hard
        masks in the last part of the training.
    """

    def soft(self, name: str, progress: float) -> Tensor:
        """The weight under its soft mask."""
        weight, units = self.weight(name), self.units(name)
        share = linear_ramp(progress, start=self.settings.start, end=self.settings.reached)
        mean = units.total(weight.square()) / units.sizes()
        size = mean.clamp_min(_LEAST).sqrt()
        blend = self.pattern_of(name).sparsity is not None
        keep = self.keep[name] if blend else ramped_keep(units.per_row, self.keep[name], share)
        tau = pdp_temperature(size, share=self.settings.temperature)
        masked = units.spread(pdp_mask(size, keep, tau)) * weight
        return torch.lerp(weight, masked, share) if blend else masked


@schedules.register("pdp", applies_to=("weights",))
class PdpSchedule(Schedule):
    """Soft masks around a magnitude threshold that is found anew in every step, on a linear ramp."""

    weights: ClassVar[type[SparseRegime] | None] = PdpMasks
