"""Soft masks on channels that are made hard for the last part of the training."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from deploypruner.channels.learned.regime import ChannelRegime, closed
from deploypruner.channels.plan import Plan
from deploypruner.graph import Graph
from deploypruner.graph.execute.gates import gated
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.train.regime import under

# Fraction of the training after which masks are 0 or 1, so that what is removed is what was trained last.
HARD_FROM = 0.9
UNDECIDED = (0.05, 0.95)


class SoftGates(ChannelRegime):
    """Gates with a gradient until nine tenths of the training are over; then everything that goes is closed.

    Ours: PDP and DTP harden at the end. In short runs of ResNet-20 channels that were undecided then cost the hard
    network several points of accuracy (`benchmarks.masks_over_training`), which the rest of the training brings back.

    Args:
        graph: The traced dense model.
        plan: Widths at the end.
    """

    def __init__(self, graph: Graph, plan: Plan) -> None:
        super().__init__(graph, plan)
        self._kept: dict[str, IntArray] | None = None
        self._left = 0.0

    @abstractmethod
    def masks(self, step: int) -> dict[str, Tensor]:
        """Group id -> `[C]` in [0, 1] for this step, with a gradient; called once a step while masks are soft."""

    @abstractmethod
    def last_masks(self) -> dict[str, Tensor]:
        """The masks of the last step again, without a gradient."""

    def weights(self, step: int) -> dict[str, Tensor]:
        """Gated parameters, or parameters with zeros once the masks are hard."""
        if self._kept is None and step >= HARD_FROM * self.steps:
            self._left = self.undecided()
            self._kept = self.keep()
        if self._kept is not None:
            return closed(self.graph, self.parameters, self._kept) | self.shut()
        return gated(self.graph, self.parameters, self.masks(step)) | self.shut()

    @property
    def is_hard(self) -> bool:
        """Are the masks 0 or 1 by now?"""
        return self._kept is not None

    def soft(self) -> dict[str, Tensor]:
        """Masks of the last step."""
        if self._kept is None:
            return self.last_masks()
        return {g: self._hard(g, self._kept[g]) for g in self.chosen}

    def keep(self) -> dict[str, IntArray]:
        """What the masks stand for, until that is fixed."""
        return super().keep() if self._kept is None else self._kept

    def undecided(self) -> float:
        """Of the channels that training decides, with a mask between 0.05 and 0.95; when they were made hard."""
        masks = list(self.last_masks().values())
        if self._kept is not None or not masks:
            return self._left
        joined = torch.cat(masks)
        return float(((joined > UNDECIDED[0]) & (joined < UNDECIDED[1])).double().mean())

    def state(self) -> dict[str, Tensor]:
        """What stays, once that is fixed."""
        if self._kept is None:
            return super().state()
        kept = {f"hard.{g}": torch.as_tensor(keep) for g, keep in self._kept.items()}
        return super().state() | kept | {"left": torch.tensor(self._left, dtype=torch.float64)}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take it over."""
        super().load_state(state)
        self._kept = {g: keep.cpu().numpy() for g, keep in under(state, "hard.").items()} or None
        self._left = float(state["left"]) if self._kept else 0.0

    def _hard(self, group: str, kept: IntArray) -> Tensor:
        return torch.as_tensor(np.isin(np.arange(self.graph.group(group).size), kept)).float()
