"""Random: the control that every criterion has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import torch
from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria
from deploypruner.records import MemberView


@criteria.register("random")
@dataclass(frozen=True)
class Random(Criterion):
    """Uniform numbers from 0 to 1, drawn for each group from the seed and the group's name.

    The one criterion that does not look at the channels: relabelling them does not relabel its scores.

    Args:
        seed: Another seed chooses other channels; the recipe's own seed does not.

    Source:
        The control of Mittal et al., "Recovering from Random Pruning", arXiv:1801.10447.
    """

    needs: ClassVar[Needs] = Needs.WEIGHTS
    normalizer: ClassVar[Normalizer] = "none"

    seed: int = 0

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        named = crc32(f"{self.seed} {members[0].name} {len(members[0].weight)}".encode())
        return torch.rand(len(members[0].weight), generator=torch.Generator().manual_seed(named))
