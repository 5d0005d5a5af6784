"""First-order evidence: gates and weights times their gradients, one backward pass per minibatch."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from deploypruner.channels.statistics.passes import BatchPart, Passes, checked, differentiate
from deploypruner.graph import Graph
from deploypruner.graph.inputs import call
from deploypruner.graph.labels.channel_rows import Evidence, gate_rows


class SlopeSums:
    """Gate derivatives, and weight x gradient summed over each channel axis, minibatch by minibatch.

    Only these sums are kept of each minibatch: a model's gradients are held once, whatever the number of batches.

    Args:
        graph: The traced model.
        parameters: Names of those that have gradients.
        gates: Keep gate derivatives.
        weights: Keep weight x gradient.

    Attributes:
        names: Parameters whose gradients are asked for.
    """

    def __init__(self, graph: Graph, parameters: Collection[str], *, gates: bool, weights: bool) -> None:
        affines = [a for group in graph.groups for a in graph.last_affines(group)] if gates else []
        members = [m for group in graph.groups for m in group.members] if weights else []
        self._affines = list(dict.fromkeys(affines))
        self._axes = list(dict.fromkeys((m.parameter, m.axis) for m in members if m.parameter in parameters))
        # Gates alone have no need of the gradients of convolutions before a norm.
        gated = [name for a in self._affines for name in (a.weight, *a.biases)]
        self.names: Collection[str] = parameters if weights or not gated else dict.fromkeys(gated)
        self.clear()

    def add(self, weights: Mapping[str, Tensor], grads: Mapping[str, Tensor | None]) -> None:
        """Take in the gradients of one minibatch's mean loss; None counts as zero."""
        with torch.no_grad():
            whole = {n: torch.zeros_like(weights[n]) if (g := grads.get(n)) is None else g for n in self.names}
            for affine in self._affines:
                self._gates[affine.weight].append(gate_rows(affine, weights, whole).float().cpu())
            for name, axis in self._axes:
                self._slopes[name, axis].append(_sums(weights[name] * whole[name], axis).float().cpu())

    def clear(self) -> None:
        """Forget everything."""
        self._gates: dict[str, list[Tensor]] = {a.weight: [] for a in self._affines}
        self._slopes: dict[tuple[str, int], list[Tensor]] = {axis: [] for axis in self._axes}

    @property
    def is_empty(self) -> bool:
        """Has there been no minibatch since the last `clear`?"""
        return not any([*self._gates.values(), *self._slopes.values()])

    def evidence(self) -> Evidence:
        """What was asked for, of all minibatches since the last `clear`; see `graph.labels.channel_rows.Evidence`."""
        gates = {name: torch.stack(rows) for name, rows in self._gates.items()}
        slopes = {key: torch.stack(sums, dim=1) for key, sums in self._slopes.items()}
        return Evidence(gates=gates or None, slopes=slopes or None)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        state = {f"gates.{name}": torch.stack(rows) for name, rows in self._gates.items() if rows}
        return state | {f"slopes.{axis}.{name}": torch.stack(s) for (name, axis), s in self._slopes.items() if s}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self.clear()
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "gates":
                self._gates[name] = list(tensor.unbind())
            else:
                axis, _, name = name.partition(".")
                self._slopes[name, int(axis)] = list(tensor.unbind())


class Slopes:
    """Collects first-order evidence of a trained model.

    Args:
        passes: The model.
        gates: Collect gate derivatives.
        weights: Collect weight x gradient.
    """

    holds = 1.0

    def __init__(self, passes: Passes, *, gates: bool, weights: bool) -> None:
        self._passes = passes
        self._sums = SlopeSums(passes.graph, passes.weights, gates=gates, weights=weights)

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """One minibatch.

        Raises:
            InputError: A loss that is not finite, or a model without a gradient.
        """
        weights, grads = {n: self._passes.weights[n] for n in self._sums.names}, dict[str, Tensor]()
        for part in parts:
            loss = self._passes.loss(part, call(self._passes.module, part.inputs))
            checked(loss.item(), number)
            found = differentiate(loss, list(weights.values()))
            for name, grad in zip(weights, found, strict=True):
                if grad is not None:
                    grads[name] = grads[name].add_(grad) if name in grads else grad.clone()
        self._sums.add(weights, grads)

    def evidence(self) -> Evidence:
        """What was asked for."""
        return self._sums.evidence()


def _sums(product: Tensor, axis: int) -> Tensor:
    """Of weight x gradient: `[2, n]`, its sum and its sum of squares over all other axes than `axis`."""
    rows = product.movedim(axis, 0).flatten(1) if product.ndim > 1 else product[:, None]
    return torch.stack([rows.sum(dim=1), rows.square().sum(dim=1)])
