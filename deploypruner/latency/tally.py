"""A predicted latency that follows a plan choice by choice; only what a change touches is evaluated again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph import Graph
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.cost_surface import Floats
from deploypruner.latency.matching import Lengths
from deploypruner.latency.terms import Term


class Predicts(Protocol):
    """What is asked of a latency model: its graph, the lengths of its axes, and the operations it sums over."""

    graph: Graph
    lengths: Lengths
    terms: list[Term]

    def term_ms(self, term: Term, sizes: IntArray) -> Floats:
        """Milliseconds `[m]` of an operation at sizes `[m, k]`."""


@dataclass(frozen=True)
class _Axis:
    """What one group does to one axis.

    Args:
        number: Of the axis.
        last: `[n]` width the group must exceed for row n to stay: its last channel's place in the order, -1 if none.
        others: `[n, k]` atoms of other groups on each row, 0 where there is none.
        shared: Does any other group matter?
        alone: `[C + 1]` length for every width, other groups whole.
    """

    number: int
    last: IntArray
    others: IntArray
    shared: bool
    alone: IntArray


class LatencyTally:
    """Milliseconds of a plan that changes group by group and branch by branch, all whole at first.

    Args:
        model: Predicts.
        order: Group id -> all its channels, the ones that stay longest first; by number where not given.
            A branch is a group of one channel.
    """

    def __init__(self, model: Predicts, order: Mapping[str, NDArray[np.int64]]) -> None:
        self._model, self._order, self._atoms = model, order, model.graph.atoms
        self._removed = np.zeros(model.graph.labelling.atoms.count, bool)
        self._lengths = model.lengths.whole()
        self._used = sorted({axis for term in model.terms for axis in term.all_axes})
        lengths = self._lengths[None]
        self._ms = np.array([float(model.term_ms(term, term.sizes(lengths))[0]) for term in model.terms])
        self._total = float(self._ms.sum())
        self._axes = self._axes_of_groups()
        users: dict[int, list[int]] = {}
        for i, term in enumerate(model.terms):
            for axis in set(term.all_axes):
                users.setdefault(axis, []).append(i)
        self._terms = {
            group: sorted({i for axis in axes for i in users.get(axis.number, [])})
            for group, axes in self._axes.items()
        }

    @property
    def ms(self) -> float:
        """Predicted median milliseconds of the current plan."""
        return self._total

    def keep(self, group: str, channels: NDArray[np.int64]) -> float:
        """Let one group keep exactly these channels, or a branch go with none or stay with channel 0.

        Returns:
            Milliseconds of the whole model after that.
        """
        atoms = self._atoms[group]
        self._removed[atoms] = True
        self._removed[atoms[channels]] = False
        for axis in self._axes[group]:
            rows = self._model.lengths.rows[axis.number]
            self._lengths[axis.number] = len(rows) - np.count_nonzero(self._removed[rows].any(axis=1))
        lengths = self._lengths[None]
        for i in self._terms[group]:
            term = self._model.terms[i]
            ms = float(self._model.term_ms(term, term.sizes(lengths))[0]) if term.runs(self._lengths) else 0.0
            self._total += ms - self._ms[i]
            self._ms[i] = ms
        return self._total

    def sweep(self, group: str, widths: NDArray[np.int64]) -> Floats:
        """Milliseconds of the whole model for each width: the first channels of the group's order stay.

        Args:
            group: Group or branch id.
            widths: `[m]` candidate widths, 0 < width <= size; of a branch 0 or 1.

        Returns:
            `[m]`; the plan itself is not changed.
        """
        widths = np.asarray(widths, np.int64)
        lengths = {axis.number: self._swept(axis, widths) for axis in self._axes[group]}
        base = self._total - sum(self._ms[i] for i in self._terms[group])
        total = np.full(len(widths), base)
        for i in self._terms[group]:
            term = self._model.terms[i]
            sizes = np.empty((len(widths), len(term.axes)), np.int64)
            for column, axis in enumerate(term.axes_list):
                sizes[:, column] = lengths.get(axis, self._lengths[axis])
            if not term.plain:
                sizes = sizes * term.times // term.per
            ms = self._model.term_ms(term, sizes)
            there = 1 if term.node.branch is None else lengths.get(term.node.branch, self._lengths[term.node.branch])
            total += ms * there
        return total

    def _swept(self, axis: _Axis, widths: IntArray) -> IntArray:
        """Length of an axis for every width."""
        if not axis.shared:
            return axis.alone[widths]
        alive = ~self._removed[axis.others].any(axis=1)
        counts = np.bincount(axis.last[alive] + 1, minlength=len(axis.alone))
        found: IntArray = np.cumsum(counts)[widths]
        return found

    def _axes_of_groups(self) -> dict[str, list[_Axis]]:
        """Group -> every axis that a term depends on and the group has atoms on."""
        count = len(self._removed)
        owner, place = np.full(count, -1), np.zeros(count, np.int64)
        for i, (group, atoms) in enumerate(self._atoms.items()):
            owner[atoms] = i
            place[atoms[self._order.get(group, np.arange(len(atoms)))]] = np.arange(len(atoms))
        names = list(self._atoms)
        found: dict[str, list[_Axis]] = {name: [] for name in names}
        for number in self._used:
            rows = self._model.lengths.rows[number]
            owners = owner[rows]
            for i in np.unique(owners[owners >= 0]).tolist():
                own = owners == i
                last = np.where(own, place[rows], -1).max(axis=1)
                others = np.where(own | (owners < 0), 0, rows)
                size = len(self._atoms[names[i]])
                alone = np.cumsum(np.bincount(last + 1, minlength=size + 1))
                found[names[i]].append(_Axis(number, last, others, bool(others.any()), alone))
        return found
