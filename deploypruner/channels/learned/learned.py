"""Criteria whose masks are learned: PDP from the weights, DTP from scores of its own."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn

from deploypruner.channels.criteria import Criterion
from deploypruner.channels.criteria.dtp import Dtp
from deploypruner.channels.criteria.pdp import Pdp
from deploypruner.channels.learned.regime import ChannelRegime
from deploypruner.channels.learned.soft import HARD_FROM, SoftGates
from deploypruner.channels.plan import Plan
from deploypruner.graph import Graph
from deploypruner.graph.labels.channel_rows import weight_rows
from deploypruner.sparsity.masks import (
    TransportMask,
    linear_ramp,
    pdp_mask,
    pdp_temperature,
    ramped_keep,
    root_mean_square,
    transport_beta,
)
from deploypruner.train.regime import under

# Factor on the temperature of PDP at the end: of channels, two are at the threshold of a group at all times.
_COOLING = 0.01
# Masks of k/n on every channel from the first step would shrink all activations at once.
_FADE_IN = 0.1
# Fraction of the training -> share of undecided masks beyond which beta is halved.
_TOO_MANY = {0.5: 0.2, 0.6: 0.1, 0.7: 0.05, 0.8: 0.02}


@singledispatch
def gates(criterion: Criterion, graph: Graph, plan: Plan) -> ChannelRegime:
    """The training of masks for a kind of criterion; a file that adds one registers its training here."""
    raise AssertionError(f"{criterion} says that it is learned, and there is no training of its masks")


class PdpGates(SoftGates):
    """PDP on channels: `m = sigmoid((q^2 - t^2) / tau)` of the coupled group's own weights, recomputed every step.

    Args:
        graph: The traced dense model.
        plan: Widths at the end.
        criterion: Its parameters.
    """

    def __init__(self, graph: Graph, plan: Plan, criterion: Pdp) -> None:
        super().__init__(graph, plan)
        self._criterion = criterion
        self._step = 0

    def masks(self, step: int) -> dict[str, Tensor]:
        """Masks whose gradients reach the weights."""
        self._step = step
        return self._masks(self._magnitudes())

    def last_masks(self) -> dict[str, Tensor]:
        """Masks of the current weights."""
        with torch.no_grad():
            return self._masks(self._magnitudes())

    def values(self) -> dict[str, Tensor]:
        """Magnitudes."""
        with torch.no_grad():
            return self._magnitudes()

    def state(self) -> dict[str, Tensor]:
        """Where in the ramp training is."""
        return super().state() | {"step": torch.tensor(self._step)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        super().load_state(state)
        self._step = int(state["step"])

    def describe(self) -> str:
        """Parameters too."""
        return f"{super().describe()} {self._criterion}"

    def _magnitudes(self) -> dict[str, Tensor]:
        groups = (self.graph.group(g) for g in self.chosen)
        return {g.id: root_mean_square(weight_rows(self.graph, g, self.parameters)) for g in groups}

    def _masks(self, magnitudes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        progress = self._step / max(self.steps - 1, 1)
        share = linear_ramp(progress, start=self._criterion.start, end=self._criterion.end)
        return {
            g: pdp_mask(q, ramped_keep(len(q), self.chosen[g], share), self._temperature(q))
            for g, q in magnitudes.items()
        }

    def _temperature(self, q: Tensor) -> Tensor:
        """Constant to the end of the ramp; then it falls, so that channels at the threshold are decided too."""
        end, progress = self._criterion.end, self._step / max(self.steps - 1, 1)
        cooled = min(1.0, (progress - end) / (HARD_FROM - end)) if end < HARD_FROM and progress > end else 0.0
        return pdp_temperature(q, share=self._criterion.temperature * _COOLING**cooled)


class TransportGates(SoftGates):
    """DTP on channels: one transport per group, scores trained with the weights by an Adam of their own.

    Scores begin equal, so the loss alone decides. The masks fade in over the first tenth of the training. Beta is
    halved where more than 20, 10, 5 or 2 % of them are undecided at 50, 60, 70 or 80 % of it.

    Args:
        graph: The traced dense model.
        plan: Widths at the end.
        criterion: Its parameters.

    Attributes:
        halvings: How often beta was halved.
    """

    def __init__(self, graph: Graph, plan: Plan, criterion: Dtp) -> None:
        super().__init__(graph, plan)
        self._criterion = criterion
        self.halvings = 0
        self._step = 0
        self._scores: dict[str, nn.Parameter] = {}
        self._transports: dict[str, TransportMask] = {}

    def begin(self, student: nn.Module, steps: int) -> None:
        """Equal scores, and a temperature for this number of steps."""
        super().begin(student, steps)
        device = next(iter(self.parameters.values())).device
        beta = self._criterion.beta or transport_beta(steps, gap=_expected_gap(self._criterion.lr, steps))
        for group, keep in self.chosen.items():
            size = self.graph.group(group).size
            self._scores[group] = nn.Parameter(torch.zeros(size, device=device))
            self._transports[group] = TransportMask((size,), keep, beta, device=device)
        if self._scores:
            self._adam = torch.optim.Adam(self._scores.values(), lr=self._criterion.lr)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The scores; the loop's optimizer does not move them, because their step must not depend on its kind."""
        scores = list(self._scores.values())
        return [{"params": scores, "weight_decay": 0.0, "lr_scale": 0.0}] if scores else []

    def masks(self, step: int) -> dict[str, Tensor]:
        """Advance every plan by one iteration."""
        self._step = step
        return self._faded({g: transport(self._scores[g]) for g, transport in self._transports.items()})

    def after_backward(self, step: int) -> None:
        """Move the scores, and look whether the masks decide."""
        if self._scores and not self.is_hard:
            self._adam.step()
            self._adam.zero_grad(set_to_none=True)
        allowed = {round(progress * self.steps): share for progress, share in _TOO_MANY.items()}
        if step + 1 in allowed and self.undecided() > allowed[step + 1]:
            self.halvings += 1
            for transport in self._transports.values():
                transport.beta /= 2

    def last_masks(self) -> dict[str, Tensor]:
        """Masks of the last step."""
        return self._faded({g: transport.soft() for g, transport in self._transports.items()})

    def values(self) -> dict[str, Tensor]:
        """Logits of the masks, which still differ where the masks are 0 or 1 to the last bit."""
        return {g: transport.logits for g, transport in self._transports.items()}

    def state(self) -> dict[str, Tensor]:
        """Scores, what Adam remembers of them, plans."""
        state = super().state() | {"step": torch.tensor(self._step), "halvings": torch.tensor(self.halvings)}
        for group, score in self._scores.items():
            state[f"scores.{group}"] = score.detach()
            state |= {f"plan.{group}.{name}": t for name, t in self._transports[group].state().items()}
            state |= {f"adam.{group}.{name}": t for name, t in self._adam.state[score].items()}
        return state

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put them back."""
        super().load_state(state)
        self._step, self.halvings = int(state["step"]), int(state["halvings"])
        for group, score in self._scores.items():
            with torch.no_grad():
                score.copy_(state[f"scores.{group}"])
            self._transports[group].load_state(under(state, f"plan.{group}."))
            memory = under(state, f"adam.{group}.")
            self._adam.state[score] = {n: t.clone() if n == "step" else t.to(score) for n, t in memory.items()}

    def describe(self) -> str:
        """Parameters too."""
        return f"{super().describe()} {self._criterion}"

    def _faded(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        share = min(1.0, (self._step + 1) / max(1.0, _FADE_IN * self.steps))
        return {g: 1 - share * (1 - mask) for g, mask in masks.items()}


def _expected_gap(lr: float, steps: int) -> float:
    """How far scores that Adam moves are apart, averaged over the first half of a training; ours.

    Adam moves a score by at most `lr` a step, and gradients of masks change sign. With a tenth of that way the masks
    of ResNet-20 on CIFAR-10 are hard around half time (benchmarks/masks_over_training.py).
    """
    return 0.1 * lr * max(steps, 4) / 4


@gates.register
def _(criterion: Pdp, graph: Graph, plan: Plan) -> ChannelRegime:
    return PdpGates(graph, plan, criterion)


@gates.register
def _(criterion: Dtp, graph: Graph, plan: Plan) -> ChannelRegime:
    return TransportGates(graph, plan, criterion)


def learned_regime(graph: Graph, plan: Plan, criterion: Criterion) -> ChannelRegime:
    """The training that a criterion asks for whose masks are learned.

    Args:
        graph: The traced dense model.
        plan: Widths at the end.
        criterion: One with `learned`.
    """
    return gates(criterion, graph, plan)
