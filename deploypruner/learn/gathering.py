"""Evidence for a criterion from the gradients that training computes anyway."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from deploypruner.criteria import Criterion, Needs
from deploypruner.graph import Graph
from deploypruner.graph.holding import holding
from deploypruner.graph.views import Evidence, gate_rows, last_affines, member_views
from deploypruner.prune.evidence.slopes import slope_sums

# What one backward pass of training tells; everything else takes passes of its own.
AVAILABLE = Needs.WEIGHTS | Needs.GRADIENTS | Needs.GATES


class Gathering:
    """Sums up gradients from one ranking to the next.

    Channels that are closed have gradients of zero in everything that belongs to them, and open ones those of the
    network as it is, so the parameters' own gradients are all that is needed.

    Args:
        graph: The traced model.
        criterion: Asks for WEIGHTS, GRADIENTS or GATES.
        parameters: Of the student, by name.
    """

    def __init__(self, graph: Graph, criterion: Criterion, parameters: Mapping[str, nn.Parameter]) -> None:
        assert not criterion.needs & ~AVAILABLE, f"{criterion} needs more than a training's gradients"
        self._graph, self._criterion, self._parameters = graph, criterion, parameters
        self._affines = list(dict.fromkeys(a for group in graph.groups for a in last_affines(graph, group)))
        members = (m for group in graph.groups for m in group.members)
        self._axes = list(dict.fromkeys((m.parameter, m.axis) for m in members if m.parameter in parameters))
        self._reset()

    def add(self) -> None:
        """Take in the gradients of this minibatch."""
        needs = self._criterion.needs
        if not needs & (Needs.GRADIENTS | Needs.GATES):
            return
        grads = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in self._parameters.items()}
        held = {name: parameter.detach() for name, parameter in self._parameters.items()}
        if needs & Needs.GATES:
            for affine in self._affines:
                self._gates.setdefault(affine.weight, []).append(gate_rows(affine, held, grads).float().cpu())
        if needs & Needs.GRADIENTS:
            for name, axis in self._axes:
                sums = slope_sums(held[name] * grads[name], axis).float().cpu()
                self._slopes.setdefault((name, axis), []).append(sums)

    @property
    def ready(self) -> bool:
        """Is there what the criterion asks for?"""
        return bool(self._gates or self._slopes) or self._criterion.needs == Needs.WEIGHTS

    def scores(self) -> dict[str, Tensor]:
        """Group id -> `[C]` scores of everything since the last time, and of the weights as they are now."""
        gates = {name: torch.stack(rows) for name, rows in self._gates.items()}
        slopes = {key: torch.stack(sums, dim=1) for key, sums in self._slopes.items()}
        evidence = Evidence(gates=gates or None, slopes=slopes or None)
        with holding(self._graph, {name: p.detach() for name, p in self._parameters.items()}):
            found = {g.id: self._criterion.score(member_views(self._graph, g, evidence)) for g in self._graph.groups}
        self._reset()
        return found

    def state(self) -> dict[str, Tensor]:
        """What was gathered since the last ranking."""
        state = {f"gates.{name}": torch.stack(rows) for name, rows in self._gates.items()}
        return state | {f"slopes.{axis}.{name}": torch.stack(sums) for (name, axis), sums in self._slopes.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._reset()
        for key, tensor in state.items():
            kind, _, name = key.partition(".")
            if kind == "gates":
                self._gates[name] = list(tensor.unbind())
            else:
                axis, _, name = name.partition(".")
                self._slopes[name, int(axis)] = list(tensor.unbind())

    def _reset(self) -> None:
        self._gates: dict[str, list[Tensor]] = {}
        self._slopes: dict[tuple[str, int], list[Tensor]] = {}
