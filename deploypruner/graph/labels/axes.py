"""Every labelled axis of a traced graph once, in canonical form: what groups, costs and repairs count on."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph.labels.atoms import Atoms, IntArray, Labels


class Axes:
    """Canonical label arrays, numbered; axes on which the same atoms sit at the same places share a number.

    Made when tracing is done and nothing more will be learnt about the atoms. A network has thousands of axes but
    few different ones (a residual stream is one), so that everything counted here is counted once.

    Attributes:
        rows: Number -> live labels `[n, k]`.
        count: Number of atoms.
    """

    def __init__(self, atoms: Atoms) -> None:
        self._atoms, self.count = atoms, atoms.count
        self._number: dict[tuple[int, bytes], int] = {}
        self._seen: dict[int, tuple[IntArray, int | None]] = {}
        self.rows: list[IntArray] = []

    def number(self, labels: Labels) -> int | None:
        """Which axis this is, None where nothing on it can be removed."""
        if labels is None:
            return None
        if id(labels) not in self._seen:
            self._seen[id(labels)] = (labels, self._register(labels))  # the reference keeps the id taken
        return self._seen[id(labels)][1]

    def _register(self, labels: IntArray) -> int | None:
        rows = self._atoms.canon(labels)
        width = int((rows > 0).sum(axis=1).max(initial=0))
        if width == 0:
            return None
        rows = np.ascontiguousarray(rows[:, :width])
        key = (width, blake2b(rows.data, digest_size=16).digest())
        if key not in self._number:
            self._number[key] = len(self.rows)
            self.rows.append(rows)
        return self._number[key]


class Stack:
    """Several axes on top of one another, so that one operation counts what is left of all of them.

    Args:
        axes: Label arrays `[n, k]` with n > 0, each with its own k.
    """

    def __init__(self, axes: list[IntArray]) -> None:
        self._sizes = np.array([len(rows) for rows in axes], dtype=np.int64)
        width = max((rows.shape[1] for rows in axes), default=1)
        self._rows = np.zeros((int(self._sizes.sum()), width), np.int64)
        self._starts = np.cumsum(self._sizes) - self._sizes
        for start, rows in zip(self._starts.tolist(), axes, strict=True):
            self._rows[start : start + len(rows), : rows.shape[1]] = rows

    def kept(self, removed: NDArray[np.bool_] | None = None) -> IntArray:
        """How many indices of each axis remain without the atoms marked in `removed` (None: all)."""
        if removed is None or not len(self._sizes):
            return self._sizes.copy()
        gone = removed[self._rows[:, 0]]
        for column in range(1, self._rows.shape[1]):
            gone = gone | removed[self._rows[:, column]]
        lost: IntArray = np.add.reduceat(gone.astype(np.int64), self._starts)
        return self._sizes - lost
