"""Taylor: how much the loss would change without the channel, by its derivatives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Effort, Needs, Normalizer, at_least_one, criteria, layers
from deploypruner.errors import RecipeError
from deploypruner.records import MemberView


@criteria.register("taylor")
@dataclass(frozen=True)
class Taylor(Criterion):
    """Squared loss change of removing a channel, estimated by derivatives and averaged over minibatches.

        of = "gate":        s[c] = mean_b ( sum_m dL_b / dz_m[c] )^2,   dL/dz = gamma dL/dgamma + beta dL/dbeta
        of = "group":       s[c] = mean_b ( sum_m sum_f g_b w )^2       over the rows of the producing layers
        of = "individual":  s[c] = mean_b sum_m sum_f ( g_b w )^2
        order = 2:          s[c] = mean_b ( -sum_m dL_b / dz_m[c] + 1/2 d2L/dz[c]2 )^2

    One gate z = 1 is shared by all members through which the channel leaves (several in a residual stream), so
    by the chain rule its derivative is their signed sum. Without batch norm the gate sits on the producing
    layer's output.

    Args:
        of: What is differentiated: a gate after batch norm, or weights, as a group or one by one.
        order: 1, or 2 for the gate, with the diagonal of its Hessian.
        momentum: Of a running mean over minibatches, 0 <= momentum < 1; 0 weighs all of them alike.
        probes: Random directions per minibatch for the second derivative.

    Raises:
        RecipeError: A second order of weights, or a number out of range.

    Source:
        Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, arXiv:1906.10771: the gate
        after batch norm, equations (7) for "group", (8) for "individual" and (4) for the second order, the
        square, the average over minibatches, and a momentum over averages. The identity for dL/dz and the signed sum
        over coupled members are what the same authors' HALP computes. Ours: scoring once on a trained network in
        inference mode instead of while training, ranking by loss change per saved MAC, and a second derivative by
        Hutchinson's estimate, averaged over all minibatches before it is squared, so that its noise averages out.
    """

    normalizer: ClassVar[Normalizer] = "per_mac"

    of: Literal["gate", "group", "individual"] = "gate"
    order: Literal[1, 2] = 1
    momentum: float = 0.0
    probes: int = 1

    def __post_init__(self) -> None:
        at_least_one("probes", self.probes)
        if not 0 <= self.momentum < 1:
            raise RecipeError(
                f"criterion.momentum must be from 0 to below 1, got {self.momentum:g}",
                hint="0 weighs every minibatch alike, 0.9 is the paper's",
            )
        if self.order == 2 and self.of != "gate":
            raise RecipeError(
                f"criterion.order = 2 is there for of = 'gate' only, not '{self.of}'",
                hint="criterion 'hessian' takes the second order of weights",
            )

    @property
    def needs(self) -> Needs:
        """Gates or gradients, and the curvature for the second order."""
        if self.order == 2:
            return Needs.GATE_CURVATURE
        return Needs.GATES if self.of == "gate" else Needs.GRADIENTS

    @property
    def effort(self) -> Effort:
        """As many probes as asked for."""
        return Effort(probes=self.probes)

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        if self.of == "individual":
            squares = [m.slope_squares for m in layers(members, "producer") if m.slope_squares is not None]
            return self._mean(torch.stack(squares).sum(dim=0))
        if self.of == "group":
            slopes = [m.slope for m in layers(members, "producer") if m.slope is not None]
            return self._mean(torch.stack(slopes).sum(dim=0).square())
        seen = members[0].channels
        if self.order == 2 and seen.gate is not None and seen.gate_curvature is not None:
            return self._mean((seen.gate_curvature / 2 - seen.gate).square())
        gates = [m.gate for m in members if m.gate is not None]
        if not gates:  # a group of computed weights only: nothing to gate, nothing to prefer
            return torch.ones(len(members[0].weight))
        return self._mean(torch.stack(gates).sum(dim=0).square())

    def _mean(self, batches: Tensor) -> Tensor:
        """`[B, C]` to `[C]`: the mean, or a running one that starts at the first minibatch."""
        if not self.momentum:
            return batches.mean(dim=0)
        running = batches[0]
        for batch in batches[1:]:
            running = self.momentum * running + (1 - self.momentum) * batch
        return running
