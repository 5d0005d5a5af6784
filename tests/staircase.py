"""A latency nobody measured: every layer takes a base and a time per block of its padded sizes, like real kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph import Graph

Order = Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class Layer:
    """One layer of a plan."""

    name: str
    kind: str
    ms: float


@dataclass(frozen=True)
class Staircase:
    """ms = sum over layers of base + rate * product of sizes, each rounded up to a multiple of the block.

    Args:
        graph: The traced model.
        block: Channels a kernel works on at once.
        base: Milliseconds of every layer, however narrow.
        rate: Milliseconds of a million multiply-adds.
        remarks: What a latency model has to say about itself.
    """

    graph: Graph
    block: int = 16
    base: float = 0.01
    rate: float = 0.01
    remarks: tuple[str, ...] = ()

    @property
    def facts(self) -> dict[str, object]:
        """What a report says about the model."""
        return {"remarks": list(self.remarks)}

    def tally(self, order: Order) -> StaircaseTally:
        """A running total; every group is whole at first."""
        return StaircaseTally(self, order)

    def ms(self, keep: Order) -> float:
        """Of a plan, counted from scratch."""
        return sum(layer.ms for layer in self.layers(keep))

    def layers(self, keep: Order) -> list[Layer]:
        """Time of every layer, counted from scratch."""
        removed, found = self.graph.removed(keep), []
        for i, contraction in enumerate(self.graph.labelling.contractions):
            inside = [r for r in self.graph.residuals.values() if contraction.node in r.region]
            stays = not any(removed[r.atom] for r in inside)
            product = 1.0
            for labels, size in contraction.axes:
                number = self.graph.axes.number(labels)
                if number is None:
                    product *= size
                    continue
                left = int((~removed[self.graph.axes.rows[number]].any(axis=1)).sum())
                product *= -(-left // self.block) * self.block
            name = contraction.weight or f"layer {i}"
            found.append(Layer(name, "layer", stays * (self.base + self.rate * product / 1e6)))
        return found


class StaircaseTally:
    """The running total of a `Staircase`: each change looks at the layers it touches."""

    def __init__(self, model: Staircase, order: Order) -> None:
        graph = model.graph
        self._model, self._order, self._graph = model, order, graph
        terms = [(1.0, list[int]()) for _ in graph.labelling.contractions]
        for i, contraction in enumerate(graph.labelling.contractions):
            numbers = [(graph.axes.number(labels), size) for labels, size in contraction.axes]
            constant = float(np.prod([size for number, size in numbers if number is None]))
            terms[i] = constant, [number for number, _ in numbers if number is not None]
        self._terms = terms
        self._rows = {n: graph.axes.rows[n] for _, numbers in terms for n in numbers}
        owner = np.full(graph.axes.count, -1)
        for i, group in enumerate(graph.groups):
            owner[graph.atoms[group.id]] = i
        self._axes = {
            group.id: [n for n, rows in self._rows.items() if (owner[rows] == i).any()]
            for i, group in enumerate(graph.groups)
        }
        self._layers = {
            g: [i for i, (_, numbers) in enumerate(terms) if set(numbers) & set(axes)]
            for g, axes in self._axes.items()
        }
        self._branches = {
            name: [i for i, c in enumerate(graph.labelling.contractions) if c.node in residual.region]
            for name, residual in graph.residuals.items()
        }
        self._gone = set[int]()
        self._removed = np.zeros(graph.axes.count, bool)
        self._kept = {n: len(rows) for n, rows in self._rows.items()}
        self._rank = np.full(graph.axes.count, -1)
        for group_id in self._axes:
            channels = order[group_id]
            self._rank[graph.atoms[group_id][channels]] = np.arange(len(channels))
        self._times = [self._time(i, self._kept) for i in range(len(terms))]
        self._total = float(sum(self._times))

    @property
    def ms(self) -> float:
        return self._total

    def keep(self, group: str, channels: NDArray[np.int64]) -> float:
        if group in self._branches:
            mine = set(self._branches[group])
            self._gone = self._gone - mine if len(channels) else self._gone | mine
            self._times = [self._time(i, self._kept) for i in range(len(self._terms))]
            self._total = float(sum(self._times))
            return self.ms
        atoms = self._graph.atoms[group]
        self._removed[atoms] = True
        self._removed[atoms[channels]] = False
        for n in self._axes[group]:
            rows = self._rows[n]
            self._kept[n] = len(rows) - int(self._removed[rows].any(axis=1).sum())
        for i in self._layers[group]:
            self._times[i] = self._time(i, self._kept)
        self._total = float(sum(self._times))
        return self.ms

    def sweep(self, group: str, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        if group in self._branches:
            was = set(self._branches[group]) <= self._gone
            found = [self.keep(group, np.arange(width)) for width in widths]
            self.keep(group, np.arange(0 if was else 1))
            return np.array(found)
        wanted, atoms = np.asarray(widths), self._graph.atoms[group]
        never = len(atoms)
        rank = np.where(self._removed, never, -1)
        rank[atoms] = self._rank[atoms]
        kept = dict[int, NDArray[np.int64]]()
        for n in self._axes[group]:
            # A row stays from the width on that holds the last of its atoms.
            kept[n] = np.searchsorted(np.sort(rank[self._rows[n]].max(axis=1)), wanted, side="left")
        everything = {**self._kept, **kept}
        rest = self.ms - sum(self._times[i] for i in self._layers[group])
        total = np.full(len(wanted), rest)
        for i in self._layers[group]:
            total += self._time(i, everything)
        return total

    def _time(self, layer: int, kept: Mapping[int, Any]) -> Any:
        if layer in self._gone:
            return 0.0
        constant, numbers = self._terms[layer]
        block = self._model.block
        product = constant
        for n in numbers:
            product = product * (-(-kept[n] // block) * block)
        return self._model.base + self._model.rate * product / 1e6
