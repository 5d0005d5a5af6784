"""Criteria: how much a channel matters. Adding one is one file in this package.

A criterion sees rows of numbers (`MemberView`), never layer types or the graph. Its score is comparable within
one group; a normalizer (`channels.normalize`) makes it comparable across groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from deploypruner.errors import RecipeError
from deploypruner.records import MemberView
from deploypruner.registries import criteria as criteria

# A registered name, see `channels.normalize`.
Normalizer: TypeAlias = str


class Needs(Flag):
    """What has to be computed before a criterion can score; everything but WEIGHTS takes data.

    Attributes:
        WEIGHTS: The weights alone.
        GRADIENTS: Per minibatch, weight x gradient summed over each channel: one backward pass.
        GATES: Per minibatch, the derivative with respect to a gate on each channel: one backward pass.
        GATE_CURVATURE: The second derivative with respect to that gate: one backward pass, and two per probe.
        CURVATURE: The diagonal of the Hessian of every weight: one backward pass, and two per probe.
        ACTIVATIONS: What each channel carries to the layers that read it: a forward pass.
        LOSS: The loss without each channel: a forward pass per channel.
    """

    WEIGHTS = auto()
    GRADIENTS = auto()
    GATES = auto()
    GATE_CURVATURE = auto()
    CURVATURE = auto()
    ACTIVATIONS = auto()
    LOSS = auto()


DIFFERENTIATED = Needs.GRADIENTS | Needs.GATES | Needs.GATE_CURVATURE | Needs.CURVATURE


@dataclass(frozen=True)
class Effort:
    """How much evidence a criterion wants.

    Args:
        probes: Random directions per minibatch for an estimate of curvature.
        batches: Minibatches that are looked at, None for all there are.
    """

    probes: int = 1
    batches: int | None = None


class Criterion(ABC):
    """Scores the channels of one group. Subclasses are frozen dataclasses: their fields are their parameters.

    Attributes:
        normalizer: Name of what makes its scores comparable across groups unless the recipe says otherwise.
        learned: Are masks trained with the weights, which then say what stays? `channels.learned` has a training for
            every criterion that says so; its `score` only chooses the widths.
    """

    normalizer: ClassVar[Normalizer]
    learned: ClassVar[bool] = False

    @property
    @abstractmethod
    def needs(self) -> Needs:
        """Evidence that is collected for it."""

    @property
    def effort(self) -> Effort:
        """How much of it."""
        return Effort()

    @abstractmethod
    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Importance of each channel.

        Args:
            members: Every parameter of one coupled group, C rows each.

        Returns:
            `[C]` float32, finite; larger means keep.
        """


def layers(members: tuple[MemberView, ...], *roles: str) -> tuple[MemberView, ...]:
    """The members in one of these roles, all of them where there is none."""
    return tuple(m for m in members if m.role in roles) or members


def at_least_one(name: str, value: int | None) -> None:
    """Check a count among a criterion's parameters.

    Raises:
        RecipeError: It is less than 1.
    """
    if value is not None and value < 1:
        raise RecipeError(f"criterion.{name} must be at least 1, got {value}", hint="leave it out for the default")


def mean_of_shares(rows: list[Tensor]) -> Tensor:
    """`[C]`, the mean over layers of numbers `[C]` divided by their own mean: each layer counts the same.

    Where all of a layer's numbers are zero its share is zero.
    """
    tiny = torch.finfo(torch.float32).tiny
    return torch.stack([row / row.mean().clamp_min(tiny) for row in rows]).mean(dim=0)
