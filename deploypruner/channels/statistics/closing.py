"""The loss without each channel: everything of it set to zero, one forward pass per channel and minibatch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from deploypruner.channels.statistics.passes import BatchPart, Passes, checked
from deploypruner.graph.inputs import as_arguments
from deploypruner.graph.labels.channel_rows import Evidence
from deploypruner.records import ChannelEvidence, Group


class Closing:
    """Collects the loss without each channel.

    Zeros in producers and consumers are what removal leaves behind, save where a statistic runs over the channels.

    Args:
        passes: The model.
    """

    holds = 0.0

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self._found: dict[str, list[Tensor]] = {group.id: [] for group in passes.graph.groups}

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """One minibatch.

        Raises:
            InputError: A loss that is not finite.
        """
        with torch.no_grad():
            dense = checked(self._loss(parts, {}), number)
            for group in self._passes.graph.groups:
                without = [self._loss(parts, replaced) for replaced in _without_each(self._passes, group)]
                self._found[group.id].append(torch.tensor(without, dtype=torch.float64).sub(dense).float())

    def evidence(self) -> Evidence:
        """Loss of each minibatch without a channel, minus the loss with it."""
        return Evidence(channels={g: ChannelEvidence(closing=torch.stack(rows)) for g, rows in self._found.items()})

    def _loss(self, parts: Sequence[BatchPart], replaced: Mapping[str, Tensor]) -> float:
        total = 0.0
        for part in parts:
            args, kwargs = as_arguments(part.inputs)
            output = functional_call(self._passes.module, dict(replaced), args, kwargs)
            total += self._passes.loss(part, output).item()
        return total


def _without_each(passes: Passes, group: Group) -> Iterator[dict[str, Tensor]]:
    """The group's parameters without its first channel, then without its second, and so on; in place on copies."""
    # A row of zeros in a direction would be divided by its norm; the scale beside it goes to zero instead.
    apart = passes.graph.labelling.directions
    members = [m for m in group.members if m.parameter in passes.weights and m.parameter not in apart]
    copies = {m.parameter: passes.weights[m.parameter].detach().clone() for m in members}
    for channel in range(group.size):
        saved = []
        for member in members:
            index = torch.as_tensor(member.index[channel], device=passes.device)
            tensor = copies[member.parameter]
            saved.append((tensor, member.axis, index, tensor.index_select(member.axis, index)))
            tensor.index_fill_(member.axis, index, 0)
        yield copies
        for tensor, axis, index, values in reversed(saved):
            tensor.index_copy_(axis, index, values)
