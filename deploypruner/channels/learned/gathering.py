"""Evidence for a criterion from the gradients that training computes anyway."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from deploypruner.channels.criteria import Criterion, Needs
from deploypruner.channels.statistics.slopes import SlopeSums
from deploypruner.graph import Graph
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.graph.labels.channel_rows import member_views

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
        gates, weights = bool(criterion.needs & Needs.GATES), bool(criterion.needs & Needs.GRADIENTS)
        self._graph, self._criterion, self._parameters = graph, criterion, parameters
        self._sums = SlopeSums(graph, parameters, gates=gates, weights=weights)

    def add(self) -> None:
        """Take in the gradients of this minibatch."""
        self._sums.add(self._parameters, {name: parameter.grad for name, parameter in self._parameters.items()})

    @property
    def ready(self) -> bool:
        """Is there what the criterion asks for?"""
        return self._criterion.needs == Needs.WEIGHTS or not self._sums.is_empty

    def scores(self) -> dict[str, Tensor]:
        """Group id -> `[C]` scores of everything since the last time, and of the weights as they are now."""
        evidence = self._sums.evidence()
        with holding(self._graph, {name: p.detach() for name, p in self._parameters.items()}):
            found = {
                group.id: self._criterion.score(member_views(self._graph, group, evidence))
                for group in self._graph.groups
            }
        self._sums.clear()
        return found

    def state(self) -> dict[str, Tensor]:
        """What was gathered since the last ranking."""
        return self._sums.state()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go on from there."""
        self._sums.load_state(state)
