"""What channels carry, over the scoring data: a forward pass per minibatch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from deploypruner.channels.statistics.passes import BatchPart, Passes
from deploypruner.errors import InputError
from deploypruner.graph.labels.activations import Carried
from deploypruner.graph.labels.channel_rows import Evidence
from deploypruner.records import ChannelEvidence


class Activity:
    """Collects the mean absolute activation of every channel, and the share of its activations that is not zero.

    Args:
        passes: The model.
    """

    holds = 0.0

    def __init__(self, passes: Passes) -> None:
        self._passes, self._carried = passes, Carried(passes.graph, passes.module)

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """One minibatch.

        Raises:
            InputError: An activation that is not finite.
        """
        for part in parts:
            self._carried.observe(part.inputs)
        for group_id, (total, _) in self._carried.sums.items():
            if not torch.isfinite(total[0]).all():
                raise InputError(
                    f"scoring batch {number} gives activations of '{group_id}' that are not finite",
                    hint="check the data for NaN, and that it is normalised as the model expects",
                )

    def evidence(self) -> Evidence:
        """Means; none for a group that nothing carries."""
        found = {}
        for group_id, (total, count) in self._carried.sums.items():
            if (count > 0).all():
                mean, active = (total / count).float()
                found[group_id] = ChannelEvidence(activation=mean, active=active)
        return Evidence(channels=found)
