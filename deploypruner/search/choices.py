"""The combinatorial problem behind a budget of time: many choices, worth that adds up, time that does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph.atoms import IntArray

Floats = NDArray[np.float64]
Order = Mapping[str, IntArray]


class Tally(Protocol):
    """Predicted milliseconds of a plan that changes group by group; every group is whole at first."""

    @property
    def ms(self) -> float:
        """Of the plan as it is."""

    def keep(self, group: str, channels: IntArray) -> float:
        """Let one group keep exactly these channels; returns the milliseconds after that."""

    def sweep(self, group: str, widths: IntArray) -> Floats:
        """Milliseconds if the group kept the first `width` channels of its order, for each; changes nothing."""


TallyOf = Callable[[Order], Tally]


@dataclass(frozen=True)
class Choice:
    """Widths one group may have.

    Args:
        group: Group id.
        widths: `[n]` channels, ascending; the last is the whole group.
        worth: `[n]` of each, not decreasing.
    """

    group: str
    widths: IntArray
    worth: Floats


class Walk(ABC):
    """A plan that moves from choice to choice, with its milliseconds and its worth.

    Args:
        worths: For each choice `[n]`, what its places are worth, not decreasing; the last place is to lose nothing,
            and that is where it begins.

    Attributes:
        worths: As given.
        at: Place of each choice.
        sweeps: How often times of a whole choice were asked for: the unit of effort.
    """

    def __init__(self, worths: Sequence[Floats]) -> None:
        self.worths = tuple(worths)
        self.at = [len(worth) - 1 for worth in self.worths]
        self.sweeps = 0

    @property
    @abstractmethod
    def ms(self) -> float:
        """Of the plan as it is."""

    @property
    def worth(self) -> float:
        """Of the plan as it is."""
        return float(sum(worth[i] for worth, i in zip(self.worths, self.at, strict=True)))

    def move(self, number: int, to: int) -> None:
        """Give choice `number` the place `to`."""
        if self.at[number] != to:
            self._moved(number, to)
            self.at[number] = to

    def go(self, places: Sequence[int]) -> None:
        """Move every choice to its place."""
        for number, to in enumerate(places):
            self.move(number, to)

    def times(self, number: int) -> Floats:
        """Milliseconds of the plan for each place of choice `number`."""
        self.sweeps += 1
        return self._times(number)

    @abstractmethod
    def _moved(self, number: int, to: int) -> None:
        """Change the time of the plan."""

    @abstractmethod
    def _times(self, number: int) -> Floats:
        """Milliseconds for each place; changes nothing."""


class WidthWalk(Walk):
    """Widths of groups of channels.

    Args:
        choices: One per group that may be cut.
        tally: With every group whole; it is changed.
        order: Group id -> channels, those that stay longest first.
    """

    def __init__(self, choices: Sequence[Choice], tally: Tally, order: Order) -> None:
        super().__init__([choice.worth for choice in choices])
        self.choices, self._tally, self._order = choices, tally, order

    @property
    def ms(self) -> float:
        """See `Walk.ms`."""
        return self._tally.ms

    def _moved(self, number: int, to: int) -> None:
        choice = self.choices[number]
        self._tally.keep(choice.group, np.sort(self._order[choice.group][: int(choice.widths[to])]))

    def _times(self, number: int) -> Floats:
        choice = self.choices[number]
        return np.asarray(self._tally.sweep(choice.group, choice.widths), dtype=np.float64)
