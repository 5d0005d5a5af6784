"""Predicted cost of a plan, by counting labels: the one counter of MACs and parameters everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray

from deploypruner.graph.atoms import IntArray, Labels
from deploypruner.graph.labelling import Labelling

_Term = tuple[int, tuple[int, ...]]


class CostModel:
    """MACs and parameters as functions of the removed atoms, exact for any plan, without tracing again.

    The MACs of a convolution or linear layer are the product of the lengths of its output axes, the input
    channels one output sees, and the window. Each length is a constant or the number of rows of a label array
    that survive, so the whole network is a short sum of products of counts.
    """

    def __init__(self, labelling: Labelling, batch: int) -> None:
        self._labelling = labelling
        self._batch = batch
        self._axes: list[IntArray] = []
        self._position: dict[bytes, int] = {}
        self._layers = [(c, self._term(c.axes)) for c in labelling.contractions]
        self._parameters = [
            self._term(zip(state.axes, state.tensor.shape, strict=True))
            for state in labelling.state.values()
            if isinstance(state.tensor, torch.nn.Parameter)
        ]

    def macs(self, removed: NDArray[np.bool_] | None = None) -> int:
        """Multiply-adds of one sample with the atoms marked in `removed` gone (None: the whole model)."""
        kept = self._kept(removed)
        return sum(_value(term, kept) for _, term in self._layers) // self._batch

    def params(self, removed: NDArray[np.bool_] | None = None) -> int:
        """Parameter elements that remain."""
        kept = self._kept(removed)
        return sum(_value(term, kept) for term in self._parameters)

    def layer_macs(self, removed: NDArray[np.bool_] | None = None) -> dict[str, int]:
        """Weight name -> multiply-adds of one sample of the layers that use it."""
        kept, out = self._kept(removed), dict[str, int]()
        for contraction, term in self._layers:
            name = contraction.weight or contraction.node.name
            out[name] = out.get(name, 0) + _value(term, kept) // self._batch
        return out

    def _term(self, axes: Iterable[tuple[Labels, int]]) -> _Term:
        """A constant times a product of the kept counts of some axes."""
        constant, counted = 1, []
        for labels, size in axes:
            position = self._axis(labels)
            if position is None:
                constant *= int(size)
            else:
                counted.append(position)
        return constant, tuple(counted)

    def _axis(self, labels: Labels) -> int | None:
        rows = self._labelling.atoms.live(labels)
        if rows is None:
            return None
        key = rows.tobytes() + bytes([rows.shape[1]])
        if key not in self._position:
            self._position[key] = len(self._axes)
            self._axes.append(rows)
        return self._position[key]

    def _kept(self, removed: NDArray[np.bool_] | None) -> list[int]:
        if removed is None:
            return [len(rows) for rows in self._axes]
        return [len(rows) - int(removed[rows].any(axis=1).sum()) for rows in self._axes]


def _value(term: _Term, kept: list[int]) -> int:
    return term[0] * prod(kept[position] for position in term[1])
