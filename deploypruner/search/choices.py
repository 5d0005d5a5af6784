"""The combinatorial problem behind a budget of time: one width per group, worth that adds up, time that does not."""

from __future__ import annotations

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


class Walk:
    """A plan that moves from choice to choice, with its milliseconds and its worth.

    Args:
        choices: One per group that may be cut.
        tally: With every group whole; it is changed.
        order: Group id -> channels, those that stay longest first.

    Attributes:
        at: Position in the widths of each choice.
        sweeps: How often times of a whole choice were asked for: the unit of effort.
    """

    def __init__(self, choices: Sequence[Choice], tally: Tally, order: Order) -> None:
        self.choices, self._tally, self._order = choices, tally, order
        self.at = [len(choice.widths) - 1 for choice in choices]
        self.sweeps = 0

    @property
    def ms(self) -> float:
        """Of the plan as it is."""
        return self._tally.ms

    @property
    def worth(self) -> float:
        """Of the plan as it is."""
        return float(sum(choice.worth[i] for choice, i in zip(self.choices, self.at, strict=True)))

    def move(self, number: int, to: int) -> None:
        """Give choice `number` its width `to`."""
        if self.at[number] != to:
            choice = self.choices[number]
            self._tally.keep(choice.group, np.sort(self._order[choice.group][: int(choice.widths[to])]))
            self.at[number] = to

    def go(self, places: Sequence[int]) -> None:
        """Move every choice to its place."""
        for number, to in enumerate(places):
            self.move(number, to)

    def times(self, number: int) -> Floats:
        """Milliseconds of the plan for each width of choice `number`."""
        self.sweeps += 1
        choice = self.choices[number]
        return np.asarray(self._tally.sweep(choice.group, choice.widths), dtype=np.float64)
