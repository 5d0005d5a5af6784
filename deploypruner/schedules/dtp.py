"""dtp: soft masks from learned scores, by optimal transport."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deploypruner.schedules import Schedule, schedules
from deploypruner.sparsity.masks import TransportMask, linear_ramp
from deploypruner.sparsity.patterns import Units
from deploypruner.sparsity.training import SparseRegime
from deploypruner.train.regime import under

_SCORE_RATE = 1e-2


class DtpMasks(SparseRegime):
    """Soft masks of learned scores: a transport plan between units and "so many stay", one Sinkhorn step a step.

        w' = (1 - a) w + a m w,   m from `masks.TransportMask` of the units' mean scores

    Every weight has a score, in the beginning its magnitude in units of the layer's root mean square. a rises from 0
    at `start` to 1 at `reached`, because all masks begin at k / n; beta is such that they are decided at `held`.

    Source:
        Li et al., "Differentiable Transportation Pruning", ICCV 2023, arXiv:2307.08483: masks by transport from
        scores that are parameters of their own, one Sinkhorn iteration per minibatch, hardening by itself. Ours:
        units of a pattern, scores that begin as magnitudes (the network is trained already), the blend, beta, and
        Adam at 1e-2 for the scores.
    """

    def begin(self, student: nn.Module, steps: int) -> None:
        """Scores from the magnitudes, and a plan for each layer."""
        super().begin(student, steps)
        self._scores: dict[str, nn.Parameter] = {}
        self._plans: dict[str, TransportMask] = {}
        for name, keep in self.keep.items():
            size = self.weight(name).detach().abs()
            score = nn.Parameter(size / size.square().mean().sqrt().clamp_min(1e-12))
            values = self._values(name, score)[0]
            gap = max(float(values.detach().std(correction=0)), 1e-6)
            beta = self._steps * max(self.settings.held, 1e-3) * gap / self.settings.hardness
            plan = TransportMask(values.shape, keep, beta, device=score.device)
            self._scores[name], self._plans[name] = score, plan
        self._adam = torch.optim.Adam(self._scores.values(), lr=_SCORE_RATE)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Scores, so that the loop clears, averages and clips their gradients; the steps are Adam's, in here."""
        return [{"params": list(self._scores.values()), "weight_decay": 0.0, "lr_scale": 0.0}]

    def after_step(self, step: int) -> None:
        """Move the scores until masks are fixed."""
        if not self.held:
            self._adam.step()

    def soft(self, name: str, progress: float) -> Tensor:
        """The weight under its soft mask; advances the plan."""
        weight = self.weight(name)
        values, units = self._values(name, self._scores[name])
        mask = units.spread(self._plans[name](values))
        share = linear_ramp(progress, start=self.settings.start, end=self.settings.reached)
        return torch.lerp(weight, mask * weight, share)

    def final_mask(self, name: str) -> Tensor:
        """The units with the largest masks."""
        units = self._values(name, self._scores[name])[1]
        return units.spread(self._plans[name].hard())

    def undecided(self) -> float:
        """Share of units with a mask between 0.05 and 0.95."""
        sizes = {name: plan.soft().numel() for name, plan in self._plans.items()}
        return sum(self._plans[name].undecided() * size for name, size in sizes.items()) / sum(sizes.values())

    def state(self) -> dict[str, Tensor]:
        """Masks, scores, plans and Adam's averages."""
        found = super().state()
        for name, score in self._scores.items():
            moments = {k: v for k, v in self._adam.state[score].items() if isinstance(v, Tensor)}
            parts = {"score": score.detach(), **self._plans[name].state(), **moments}
            found |= {f"dtp.{name}.{key}": value for key, value in parts.items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        super().load_state(state)
        for name, score in self._scores.items():
            parts = under(state, f"dtp.{name}.")
            score.data.copy_(parts.pop("score"))
            self._plans[name].load_state(parts)
            moments = {key: parts[key] for key in ("step", "exp_avg", "exp_avg_sq") if key in parts}
            if moments:
                self._adam.state[score] = moments

    def _values(self, name: str, score: Tensor) -> tuple[Tensor, Units]:
        """[R, n] mean score of every unit, and the units: those of the scores, shifted to be positive."""
        units = self.pattern_of(name).units(score.detach() - score.detach().min())
        return units.total(score) / units.sizes(), units


@schedules.register("dtp", applies_to=("weights",))
class DtpSchedule(Schedule):
    """Soft masks of learned scores: a transport plan between units and "so many stay", one Sinkhorn step a step."""

    weights: ClassVar[type[SparseRegime] | None] = DtpMasks
