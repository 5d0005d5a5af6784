"""Criteria: how much a channel matters. Adding one is one file in this package.

A criterion sees rows of numbers (`MemberView`), never layer types or the graph. Its score is comparable within
one group; `normalizer` says what makes it comparable across groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import Flag, auto
from typing import ClassVar, Literal

from torch import Tensor

from deploypruner.records import MemberView
from deploypruner.registry import Registry

Normalizer = Literal["none", "mean", "max", "per_mac"]


class Needs(Flag):
    """What has to be computed before a criterion can score."""

    WEIGHTS = auto()
    GRADIENTS = auto()
    GATES = auto()


class Criterion(ABC):
    """Scores the channels of one group. Subclasses are frozen dataclasses: their fields are their parameters.

    Attributes:
        needs: Evidence collected for it; anything but WEIGHTS takes data.
        normalizer: What makes scores comparable across groups: "none", "mean" or "max" (divide by that of the
            group; for scores without a unit), "per_mac" (divide by the MACs a channel saves; for scores that
            estimate a change of the loss, so that the cheapest loss per saved MAC goes first).
    """

    needs: ClassVar[Needs]
    normalizer: ClassVar[Normalizer]

    @abstractmethod
    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Importance of each channel.

        Args:
            members: Every parameter of one coupled group, C rows each.

        Returns:
            `[C]` float32, finite; larger means keep.
        """


criteria: Registry[Criterion] = Registry("criterion", "deploypruner.criteria")
