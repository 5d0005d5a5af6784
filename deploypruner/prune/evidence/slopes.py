"""First-order evidence: gates and weights times their gradients, one backward pass per minibatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from deploypruner.graph.inputs import call
from deploypruner.graph.views import Evidence, gate_rows, last_affines
from deploypruner.prune.evidence.passes import Part, Passes, checked, differentiate


class Slopes:
    """Collects gate derivatives, and weight x gradient summed over each channel axis; see `graph.views.Evidence`.

    Only these sums are kept of each minibatch: a model's gradients are held once, whatever the number of batches.

    Args:
        passes: The model.
        gates: Collect gate derivatives.
        weights: Collect weight x gradient.
    """

    holds = 1.0

    def __init__(self, passes: Passes, *, gates: bool, weights: bool) -> None:
        self._passes = passes
        groups = passes.graph.groups if gates else ()
        self._affines = list(dict.fromkeys(a for group in groups for a in last_affines(passes.graph, group)))
        members = [m for g in passes.graph.groups for m in g.members] if weights else []
        self._axes = list(dict.fromkeys((m.parameter, m.axis) for m in members if m.parameter in passes.weights))
        # A backward pass for gates alone has no need of the gradients of convolutions before a norm.
        gated = [name for a in self._affines for name in (a.weight, *a.biases)]
        names = passes.weights if weights or not gated else dict.fromkeys(gated)
        self._weights = {name: passes.weights[name] for name in names}
        self._gates: dict[str, list[Tensor]] = {a.weight: [] for a in self._affines}
        self._slopes: dict[tuple[str, int], list[Tensor]] = {axis: [] for axis in self._axes}

    def add(self, number: int, parts: Sequence[Part]) -> None:
        """One minibatch.

        Raises:
            InputError: A loss that is not finite, or a model without a gradient.
        """
        weights, grads = self._weights, dict[str, Tensor]()
        for part in parts:
            loss = self._passes.loss(part, call(self._passes.module, part.inputs))
            checked(loss.item(), number)
            found = differentiate(loss, list(weights.values()))
            for name, grad in zip(weights, found, strict=True):
                if grad is not None:
                    grads[name] = grads[name].add_(grad) if name in grads else grad.clone()
        with torch.no_grad():
            whole = {name: grads[name] if name in grads else torch.zeros_like(w) for name, w in weights.items()}
            for affine in self._affines:
                self._gates[affine.weight].append(gate_rows(affine, weights, whole).float().cpu())
            for name, axis in self._axes:
                self._slopes[name, axis].append(_sums(weights[name] * whole[name], axis).float().cpu())

    def evidence(self) -> Evidence:
        """What was asked for."""
        gates = {name: torch.stack(rows) for name, rows in self._gates.items()}
        slopes = {key: torch.stack(sums, dim=1) for key, sums in self._slopes.items()}
        return Evidence(gates=gates or None, slopes=slopes or None)


def _sums(product: Tensor, axis: int) -> Tensor:
    """[2, n]: the sum and the sum of squares over all other axes."""
    rows = product.movedim(axis, 0).flatten(1) if product.ndim > 1 else product[:, None]
    return torch.stack([rows.sum(dim=1), rows.square().sum(dim=1)])
