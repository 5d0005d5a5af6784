"""Which axis of the traced graph a number of an exported or executed model follows.

Over several plans a size that depends on the plan equals, up to a constant factor, the length that remains of one
axis of the graph. Lengths that change together are one axis (`graph.axes`), so comparing vectors is enough: no
names, no operator types.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import gcd

import numpy as np

from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.axes import Stack

# More parts than this are an axis on which channels were shuffled.
_MOST_RUNS = 32


@dataclass(frozen=True)
class Follows:
    """A number that is `length(axis) * times // per`.

    Args:
        axis: Position in `Lengths.rows`.
        times: Factor.
        per: Divisor; it divides exactly.
    """

    axis: int
    times: int = 1
    per: int = 1

    def value(self, lengths: Sequence[int] | IntArray) -> int:
        """The number, given the remaining length of every axis."""
        return int(lengths[self.axis]) * self.times // self.per


@dataclass(frozen=True)
class Branches:
    """Which of a graph's axes are residual branches.

    Args:
        axes: Branch id -> its position in `Lengths.rows`; the length is 1 while the branch is there, then 0.
        inside: Axis on which only groups of one branch lie -> that branch's position.
    """

    axes: Mapping[str, int]
    inside: Mapping[int, int]


NO_BRANCHES = Branches({}, {})


class Lengths:
    """Remaining lengths of every axis of a graph that something prunable lies on, of its parts, and of every group.

    A part is what one group has side by side on an axis that several lie on: a shortcut that pads with zero channels
    is written with the numbers of channels before and after.

    Attributes:
        rows: Labels of each.
        branches: Which of them are residual branches.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        graph.emptied({})  # looks at every tensor, so that the axes of all are among `graph.axes`
        movable = np.zeros(graph.labelling.atoms.count, bool)
        for atoms in graph.atoms.values():
            movable[atoms] = True
        counted = [*graph.axes.rows, *runs(graph), *(atoms[:, None] for atoms in graph.atoms.values())]
        # By content: numbers depend on who asked for an axis first, and positions are kept on disk.
        found = {_content(rows): rows for rows in counted if movable[rows].any()}
        self.rows = [found[content] for content in sorted(found)]
        self._stack = Stack(self.rows)
        self.branches = self._branches({content: i for i, content in enumerate(sorted(found))})

    def _branches(self, places: Mapping[object, int]) -> Branches:
        graph, owner = self._graph, np.full(self._graph.labelling.atoms.count, -1)
        axes = {branch.id: places[_content(graph.atoms[branch.id][:, None])] for branch in graph.branches}
        for branch in graph.branches:
            for group in branch.groups:
                owner[graph.atoms[group]] = axes[branch.id]
        owners = [np.unique(owner[rows[rows > 0]]).tolist() for rows in self.rows]
        return Branches(axes, {i: one[0] for i, one in enumerate(owners) if len(one) == 1 and one[0] >= 0})

    def of(self, keep: Keep) -> IntArray:
        """Lengths `[axes]` under a plan."""
        return self._stack.kept(self._graph.removed(keep))

    def whole(self) -> IntArray:
        """Lengths `[axes]` of the dense model."""
        return self._stack.kept()


class Matcher:
    """Finds the axis behind a vector of numbers, one number for each plan.

    Args:
        lengths: `[plans, axes]`, see `Lengths.of`.
    """

    def __init__(self, lengths: IntArray) -> None:
        self._lengths = lengths
        self._tables: dict[tuple[int, ...], dict[tuple[int, ...], list[tuple[int, int]]]] = {}

    def find(self, numbers: Sequence[int], plans: Sequence[int] | None = None) -> Follows | None:
        """The axis that `numbers` follow, None where there is none.

        Args:
            numbers: One for each plan.
            plans: Which plans they belong to; all by default.
        """
        if min(numbers) < 0 or not max(numbers):
            return None
        rows = tuple(range(len(self._lengths))) if plans is None else tuple(plans)
        unit, shape = _ratio(numbers)
        found = self._table(rows).get(shape, [])
        if not found:
            return None
        axis, step = min(found, key=lambda one: (one[1] != unit, unit % one[1] != 0, one))
        common = gcd(unit, step)
        return Follows(axis, unit // common, step // common)

    def _table(self, rows: tuple[int, ...]) -> dict[tuple[int, ...], list[tuple[int, int]]]:
        if rows not in self._tables:
            table: dict[tuple[int, ...], list[tuple[int, int]]] = {}
            for axis, column in enumerate(self._lengths[list(rows)].T.tolist()):
                if max(column) > 0:
                    unit, shape = _ratio(column)
                    table.setdefault(shape, []).append((axis, unit))
            self._tables[rows] = table
        return self._tables[rows]


def runs(graph: Graph) -> list[IntArray]:
    """Labels of channels of one group side by side on an axis of several groups; not of axes shuffled at random."""
    owner = np.zeros(graph.labelling.atoms.count, np.int64)
    for i, atoms in enumerate(graph.atoms.values(), start=1):
        owner[atoms] = i
    found = []
    for rows in graph.axes.rows:
        owners = owner[rows[:, 0]] if rows.shape[1] == 1 else owner[:0]
        starts = np.flatnonzero(np.diff(owners)) + 1
        if 0 < len(starts) < _MOST_RUNS:
            found += [run for run in np.split(rows, starts) if owner[run[0, 0]]]
    return found


def _content(rows: IntArray) -> tuple[tuple[int, ...], bytes]:
    return rows.shape, sha256(rows.tobytes()).digest()


def _ratio(numbers: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """(greatest common divisor, numbers divided by it)."""
    unit = gcd(*numbers)
    return unit, tuple(number // unit for number in numbers)
