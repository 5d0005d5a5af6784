"""The combinatorial problem behind a budget of time: many choices, worth that adds up, time that does not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph.labels.atoms import IntArray

Floats = NDArray[np.float64]
Order = Mapping[str, IntArray]


class MillisecondsTally(Protocol):
    """Predicted milliseconds of a plan that changes group by group; every group is whole at first."""

    @property
    def ms(self) -> float:
        """Of the plan as it is."""

    def keep(self, group: str, channels: IntArray) -> float:
        """Let one group (or branch: none or one) keep exactly these channels; returns the milliseconds after that."""

    def sweep(self, group: str, widths: IntArray) -> Floats:
        """Milliseconds if the group kept the first `width` channels of its order, for each; changes nothing."""


TallyOf = Callable[[Order], MillisecondsTally]


_GONE, _STAYS = np.empty(0, np.int64), np.zeros(1, np.int64)


@dataclass(frozen=True)
class WidthChoice:
    """Widths one group may have, or whether a residual branch stays.

    Args:
        group: Group id; the branch's own id where no group inside it may be cut.
        widths: `[n]` channels, ascending; the last is the whole group. 0 stands for the whole branch gone.
        worth: `[n]` of each, the last the highest.
        branch: Id of the residual branch that the group lives in and that may go, "" for none. Exactly one choice of
            a branch has the width 0; with it the others of the same branch neither cost nor matter.
        tied: Ids of groups that always have the width of this one (`channels.equal_pieces`); `worth` is of all.
    """

    group: str
    widths: IntArray
    worth: Floats
    branch: str = ""
    tied: tuple[str, ...] = ()

    @property
    def drops(self) -> bool:
        """Is the first place the branch gone?"""
        return int(self.widths[0]) == 0


class Walk(ABC):
    """A plan that moves from choice to choice, with its milliseconds and its worth.

    Args:
        worths: For each choice `[n]`, what its places are worth; the last place is to lose nothing, and that is where
            it begins.

    Attributes:
        worths: As given.
        at: Place of each choice.
        sweeps: How often times of a whole choice were asked for: the unit of effort.
    """

    def __init__(self, worths: Sequence[Floats]) -> None:
        self.worths = tuple(worths)
        self.at = [len(worth) - 1 for worth in self.worths]
        self.sweeps = 0
        self._worth: float | None = None  # of the plan as it is, once somebody asked

    @property
    @abstractmethod
    def ms(self) -> float:
        """Of the plan as it is."""

    @property
    def worth(self) -> float:
        """Of the plan as it is."""
        if self._worth is None:
            self._worth = self._summed()
        return self._worth

    def values(self, number: int) -> Floats:
        """Worth of the plan for each place of choice `number`, everything else as it is."""
        worth = self.worths[number]
        return worth + (self.worth - worth[self.at[number]])

    def is_gone(self, number: int) -> bool:
        """Does choice `number` stand at a place that leaves a whole part of the model out?"""
        return False

    def move(self, number: int, to: int) -> None:
        """Give choice `number` the place `to`."""
        if self.at[number] != to:
            self._moved(number, to)
            self.at[number], self._worth = to, None

    def go(self, places: Sequence[int]) -> None:
        """Move every choice to its place."""
        for number, to in enumerate(places):
            self.move(number, to)

    def times(self, number: int) -> Floats:
        """Milliseconds of the plan for each place of choice `number`."""
        self.sweeps += 1
        return self._times(number)

    def _summed(self) -> float:
        """Worth of the plan as it is."""
        return float(sum(worth[i] for worth, i in zip(self.worths, self.at, strict=True)))

    @abstractmethod
    def _moved(self, number: int, to: int) -> None:
        """Change the time of the plan."""

    @abstractmethod
    def _times(self, number: int) -> Floats:
        """Milliseconds for each place; changes nothing."""


class WidthWalk(Walk):
    """Widths of groups of channels, and residual branches that stay or go.

    Args:
        choices: One per group that may be cut.
        tally: With every group whole; it is changed.
        order: Group id -> channels, those that stay longest first.
    """

    def __init__(self, choices: Sequence[WidthChoice], tally: MillisecondsTally, order: Order) -> None:
        super().__init__([choice.worth for choice in choices])
        self.choices, self._tally, self._order = choices, tally, order
        self._drops = {c.branch: i for i, c in enumerate(choices) if c.drops}
        self._others: dict[str, list[int]] = {branch: [] for branch in self._drops}
        for i, choice in enumerate(choices):
            if choice.branch and not choice.drops:
                self._others[choice.branch].append(i)

    @property
    def ms(self) -> float:
        """See `Walk.ms`."""
        return self._tally.ms

    def _summed(self) -> float:
        """What is inside a branch that is gone loses nothing more."""
        gone = (choice.branch for i, choice in enumerate(self.choices) if self.is_gone(i))
        return super()._summed() - sum(self._inside(branch) for branch in gone)

    def values(self, number: int) -> Floats:
        """See `Walk.values`."""
        choice, worth = self.choices[number], self.worths[number]
        if choice.drops:
            inside = self._inside(choice.branch)
            values = worth + (self.worth - worth[self.at[number]] + inside * self.is_gone(number))
            values[0] -= inside
            return values
        if choice.branch and self.is_gone(self._drops[choice.branch]):
            return np.full(len(worth), self.worth)
        return super().values(number)

    def is_gone(self, number: int) -> bool:
        """See `Walk.is_gone`."""
        return self.choices[number].drops and self.at[number] == 0

    def _inside(self, branch: str) -> float:
        """Worth of the other choices of a branch."""
        return float(sum(self.worths[i][self.at[i]] for i in self._others[branch]))

    def _moved(self, number: int, to: int) -> None:
        choice = self.choices[number]
        if choice.drops and (to == 0 or self.at[number] == 0):
            self._tally.keep(choice.branch, _GONE if to == 0 else _STAYS)
        if choice.group != choice.branch and choice.widths[to]:
            self._keep(choice, int(choice.widths[to]))

    def _times(self, number: int) -> Floats:
        choice = self.choices[number]
        if not choice.drops:
            return self._sweep(number, choice.widths)
        gone = self.at[number] == 0
        without = self._tally.ms if gone else float(self._tally.sweep(choice.branch, np.array([0]))[0])
        if gone:
            self._tally.keep(choice.branch, _STAYS)
        stays = self._sweep(number, choice.widths[1:])
        if gone:
            self._tally.keep(choice.branch, _GONE)
        return np.array([without, *stays], dtype=np.float64)

    def _keep(self, choice: WidthChoice, width: int) -> None:
        for group in (choice.group, *choice.tied):
            self._tally.keep(group, np.sort(self._order[group][:width]))

    def _sweep(self, number: int, widths: IntArray) -> Floats:
        """Milliseconds for each width of a group; tied ones all move together, and back."""
        choice = self.choices[number]
        if not choice.tied:
            return np.asarray(self._tally.sweep(choice.group, widths), dtype=np.float64)
        found = []
        for width in widths:
            self._keep(choice, int(width))
            found.append(self._tally.ms)
        # Inside a branch that is gone any width will do: it gets one when it comes back.
        self._keep(choice, int(choice.widths[self.at[number]]) or int(choice.widths[-1]))
        return np.array(found)
