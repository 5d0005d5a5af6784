"""Predicted cost of a plan, by counting labels: the one counter of MACs and parameters everywhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.fx import Node

from deploypruner.graph.labels.atoms import IntArray, Labels
from deploypruner.graph.labels.axes import Axes, Stack
from deploypruner.graph.labels.labelling import Labelling

Removed = NDArray[np.bool_]
_Axis = tuple[Labels, int]


class CostModel:
    """MACs and parameters as functions of the removed atoms, exact for any plan, without tracing again.

    The MACs of a convolution or linear layer are the product of the lengths of its output axes, the input
    channels one output sees, and the window. Each length is a constant or the number of rows of a label array
    that survive, so the whole network is a short sum of products of counts.

    Args:
        labelling: What a front end learnt.
        axes: Its axes; shared with whatever else counts on them.
        batch: Samples the model was traced with.

    Attributes:
        rows: Labels of every axis a layer's or parameter's size depends on.
        layers: The products that are summed.
        atoms: Number of atoms.
    """

    def __init__(self, labelling: Labelling, axes: Axes, batch: int) -> None:
        self.batch, self.atoms = batch, axes.count
        self._names = [c.weight or str(c.node) for c in labelling.contractions]
        numbers = _Numbers(axes)
        branches, reads = _branches(labelling)
        self.layers = _Products([numbers.term((*c.axes, *branches.get(c.node, ()))) for c in labelling.contractions])
        self._parameters = _Products(
            [
                numbers.term((*zip(state.axes, state.tensor.shape, strict=True), *reads.get(state.names[0], ())))
                for state in labelling.state.values()
                if isinstance(state.tensor, torch.nn.Parameter)
            ]
        )
        self.rows = numbers.rows
        self._stack = Stack(self.rows)

    def macs(self, removed: Removed | None = None) -> int:
        """Multiply-adds of one sample with the atoms marked in `removed` gone (None: the whole model)."""
        return int(self.layers.values(self.kept(removed)).sum()) // self.batch

    def params(self, removed: Removed | None = None) -> int:
        """Parameter elements that remain."""
        return int(self._parameters.values(self.kept(removed)).sum())

    def layer_macs(self, removed: Removed | None = None) -> dict[str, int]:
        """Weight name -> multiply-adds of one sample of the layers that use it."""
        out = dict[str, int]()
        for name, macs in zip(self._names, self.layers.values(self.kept(removed)).tolist(), strict=True):
            out[name] = out.get(name, 0) + macs // self.batch
        return out

    def kept(self, removed: Removed | None = None) -> IntArray:
        """Remaining length of every axis that a cost depends on."""
        return self._stack.kept(removed)


def _branches(labelling: Labelling) -> tuple[dict[Node | None, list[_Axis]], dict[str, list[_Axis]]]:
    """What makes a product zero where a residual branch is gone: an axis of one index that goes with it.

    Returns:
        Node -> axes of the branch it is in, and the same for the names of parameters.
    """
    nodes: dict[Node | None, list[_Axis]] = {}
    names: dict[str, list[_Axis]] = {}
    for residual in labelling.residuals.values():
        axis: _Axis = (np.array([[residual.atom]], np.int64), 1)
        for node in residual.region:
            nodes.setdefault(node, []).append(axis)
            if node.op == "get_attr":
                names.setdefault(str(node.target), []).append(axis)
    return nodes, names


class MacsTally:
    """MACs of a plan that changes group by group: each change recounts only the axes and layers it touches.

    Args:
        costs: The counter.
        atoms: Group id -> its atoms `[C]`; all whole in the beginning.
    """

    def __init__(self, costs: CostModel, atoms: Mapping[str, IntArray]) -> None:
        self._costs, self._atoms = costs, atoms
        self._removed = np.zeros(costs.atoms, bool)
        self._kept = costs.kept()
        self._values = costs.layers.values(self._kept)
        self._total = int(self._values.sum())
        self._axes = _axes_of(costs.rows, atoms, costs.atoms)
        self._layers = {group: costs.layers.touched(axes) for group, axes in self._axes.items()}

    @property
    def macs(self) -> int:
        """Multiply-adds of one sample."""
        return self._total // self._costs.batch

    def keep(self, group: str, channels: IntArray) -> int:
        """Let one group keep exactly these channels; returns the MACs of the whole model after that."""
        atoms = self._atoms[group]
        self._removed[atoms] = True
        self._removed[atoms[channels]] = False
        for axis in self._axes[group]:
            rows = self._costs.rows[axis]
            self._kept[axis] = len(rows) - np.count_nonzero(self._removed[rows].any(axis=1))
        layers = self._layers[group]
        values = self._costs.layers.values(self._kept, layers)
        self._total += int(values.sum() - self._values[layers].sum())
        self._values[layers] = values
        return self.macs


class _Numbers:
    """Renumbers the axes that costs depend on, so that they can be counted in one stack."""

    def __init__(self, axes: Axes) -> None:
        self._axes = axes
        self._position: dict[int, int] = {}
        self.rows: list[IntArray] = []

    def term(self, axes: Iterable[tuple[Labels, int]]) -> tuple[int, list[int]]:
        """A constant times a product of the kept counts of some axes."""
        constant, counted = 1, []
        for labels, size in axes:
            number = self._axes.number(labels)
            if number is None:
                constant *= int(size)
                continue
            if number not in self._position:
                self._position[number] = len(self.rows)
                self.rows.append(self._axes.rows[number])
            counted.append(self._position[number])
        return constant, counted


class _Products:
    """Many products of a constant and some counts, evaluated together."""

    def __init__(self, terms: list[tuple[int, list[int]]]) -> None:
        self._constants = np.array([constant for constant, _ in terms], dtype=np.int64)
        width = max((len(counted) for _, counted in terms), default=0)
        # The last count, which every short product is padded with, is always 1.
        self._counted = np.array([[*c, *[-1] * (width - len(c))] for _, c in terms], np.int64).reshape(
            len(terms), width
        )
        self._users: dict[int, list[int]] = {}
        for i, (_, counted) in enumerate(terms):
            for count in counted:
                self._users.setdefault(count, []).append(i)

    def values(self, kept: IntArray, which: IntArray | None = None) -> IntArray:
        """The products, given the counts; only those of `which` where it is given."""
        constants = self._constants if which is None else self._constants[which]
        counted = self._counted if which is None else self._counted[which]
        values: IntArray = constants * np.append(kept, 1)[counted].prod(axis=1)
        return values

    def touched(self, counts: list[int]) -> IntArray:
        """Which products depend on one of these counts."""
        return np.array(sorted({i for count in counts for i in self._users.get(count, [])}), dtype=np.int64)


def _axes_of(rows: list[IntArray], atoms: Mapping[str, IntArray], count: int) -> dict[str, list[int]]:
    """Group -> the axes any of its atoms sits on."""
    names, owner = list(atoms), np.full(count, -1)
    for i, ids in enumerate(atoms.values()):
        owner[ids] = i
    found: dict[str, list[int]] = {name: [] for name in names}
    for axis, labels in enumerate(rows):
        for i in np.unique(owner[labels]).tolist():
            if i >= 0:
                found[names[i]].append(axis)
    return found
