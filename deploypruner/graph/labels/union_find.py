"""What is known about removable atoms: which are the same, which are products of others, which never go.

The store behind the label algebra (`atoms.py`): arrays indexed by atom, which only ever learn. Everything reads
labels through `canon`, which rewrites them under all that is known.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

IntArray = NDArray[np.int64]
Labels = IntArray | None

MAX_FACTORS = 6


class Facts:
    """Everything known about the atoms of one traced graph.

    Attributes:
        site: Whatever place is being analysed now; stored with every reason for freezing.
    """

    def __init__(self, capacity: int = 1 << 14) -> None:
        self.site: Any = None
        self.count = 1  # atom 0 is "nothing"
        self._families = 0
        self._parent = np.arange(capacity)
        self._family = np.zeros(capacity, np.int64)
        self._frozen = np.zeros(capacity, bool)
        self._is_product = np.zeros(capacity, bool)
        self._factors = np.zeros((capacity, MAX_FACTORS), np.int64)
        self._factors[:, 0] = np.arange(capacity)
        self._any_product = False
        # Why an atom is frozen: an index into the reasons, 0 for none.
        self._why = np.zeros(capacity, np.int64)
        self._reasons: list[tuple[str, Any] | None] = [None]
        self._scratch = np.zeros(capacity, np.int64)

    # ------------------------------------------------------------------ making and reading

    def fresh(self, size: int) -> Labels:
        """Labels of a new axis: one new atom per index, all of one family.

        An axis of one element can never shrink, so it is inert.
        """
        if size <= 1:
            return None
        while self.count + size > len(self._parent):
            self._grow()
        ids = np.arange(self.count, self.count + size)
        self.count += size
        self._families += 1
        self._family[ids] = self._families
        return ids[:, None]

    def alone(self) -> int:
        """A new atom that lies on no axis: it stands for something that goes as a whole."""
        if self.count + 1 > len(self._parent):
            self._grow()
        self.count += 1
        self._families += 1
        self._family[self.count - 1] = self._families
        return self.count - 1

    def family(self, atoms: IntArray) -> IntArray:
        """Creation event of each atom; atoms of two families are never interchangeable."""
        return self._family[atoms]

    def canon(self, labels: IntArray) -> IntArray:
        """Rewrite labels under everything learnt so far; rows are sorted in descending order, zeros last."""
        roots = self._canon_with_frozen(labels)
        roots = np.where(self._frozen[roots], 0, roots)
        return compact(roots)

    def live(self, labels: Labels) -> Labels:
        """Canonical labels, or None when nothing on the axis is removable."""
        if labels is None:
            return None
        rows = self.canon(labels)
        return rows if rows.any() else None

    def gone(self, labels: Labels, removed: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
        """Which indices of an axis vanish when the atoms marked in `removed` (bool over atoms) are removed.

        Returns:
            Bool `[n]`, or None when none vanishes.
        """
        if labels is None:
            return None
        mask: NDArray[np.bool_] = np.asarray(removed[self.canon(labels)].any(axis=1))
        return mask if mask.any() else None

    def reasons(self, labels: Labels) -> list[tuple[str, Any] | None]:
        """For each index, why it is frozen (text, site), or None where it is not frozen."""
        if labels is None:
            return []
        causes = self._causes(labels)
        causes[self.canon(labels).any(axis=1)] = 0
        return [self._reasons[cause] for cause in causes.tolist()]

    # ------------------------------------------------------------------ learning

    def freeze(self, labels: Labels, why: str, site: Any = None) -> None:
        """Nothing on this axis may be removed, because of `why` at `site` (the current site by default)."""
        if labels is None:
            return
        rows = self.canon(labels)
        atoms = rows[rows > 0]
        self._frozen[atoms] = True
        self._why[atoms] = self._reason_number(why, self.site if site is None else site)

    def freeze_like(self, rest: IntArray, frozen_side: IntArray, why: str) -> None:
        """Freeze `rest` for the reason its partner was frozen, so that a person reads the root cause."""
        causes = self._causes(frozen_side)
        cause = self._reasons[causes[np.argmax(causes > 0)]]
        self.freeze(rest, *(cause or (why,)))

    def union(self, x: IntArray, y: IntArray) -> None:
        """x[i] ~ y[i] for all i at once; the smallest atom of each class becomes its root."""
        low, high, order = np.minimum(x, y), np.maximum(x, y), np.arange(len(x))
        self._scratch[low], self._scratch[high] = -1, order
        if (self._scratch[low] < 0).all() and (self._scratch[high] == order).all():
            self._parent[high] = low  # every class is one low atom and the high ones that point at it
            return
        ids, position = np.unique(np.stack([x, y]), return_inverse=True)
        position = position.reshape(2, -1)
        links = coo_matrix((np.ones(position.shape[1]), (position[0], position[1])), shape=(len(ids), len(ids)))
        classes, member_of = connected_components(links, directed=False)
        smallest = np.full(classes, self.count)
        np.minimum.at(smallest, member_of, ids)
        self._parent[ids] = smallest[member_of]

    def set_products(self, atoms: IntArray, factors: IntArray) -> None:
        """atoms[i] := the product of factors[i]; atoms are distinct, and none is a factor of another or a product."""
        self._factors[atoms] = 0
        self._factors[atoms, : factors.shape[1]] = factors
        self._is_product[atoms] = True
        self._any_product = True

    def are_products(self, atoms: IntArray) -> NDArray[np.bool_]:
        """Which atoms stand for products already."""
        return self._is_product[atoms]

    # ------------------------------------------------------------------ internals

    def _canon_with_frozen(self, labels: IntArray) -> IntArray:
        roots = self._roots(labels)
        while self._any_product and self._is_product[roots].any():
            roots = compact(self._roots(self._factors[roots].reshape(len(roots), -1)))
        return roots

    def _causes(self, labels: IntArray) -> IntArray:
        """Number of the first reason to freeze each index, 0 for none."""
        numbers = self._why[self._canon_with_frozen(labels)]
        first: IntArray = np.where(numbers > 0, numbers, len(self._reasons)).min(axis=1)
        return np.where(first < len(self._reasons), first, 0)

    def _reason_number(self, why: str, site: Any) -> int:
        self._reasons.append((why, site))
        return len(self._reasons) - 1

    def _roots(self, atoms: IntArray) -> IntArray:
        roots = self._parent[atoms]
        while True:
            higher = self._parent[roots]
            if np.array_equal(higher, roots):
                break
            roots = higher
        self._parent[atoms] = roots
        return roots

    def _grow(self) -> None:
        old = len(self._parent)
        self._parent = np.concatenate([self._parent, np.arange(old, 2 * old)])
        self._family = np.concatenate([self._family, np.zeros(old, np.int64)])
        self._frozen = np.concatenate([self._frozen, np.zeros(old, bool)])
        self._is_product = np.concatenate([self._is_product, np.zeros(old, bool)])
        self._why = np.concatenate([self._why, np.zeros(old, np.int64)])
        self._scratch = np.zeros(2 * old, np.int64)
        factors = np.zeros((old, MAX_FACTORS), np.int64)
        factors[:, 0] = np.arange(old, 2 * old)
        self._factors = np.concatenate([self._factors, factors])


def compact(rows: IntArray) -> IntArray:
    """Sort each row in descending order, drop duplicates, trim empty columns."""
    if rows.shape[1] == 1:
        return rows
    rows = -np.sort(-rows, axis=1)
    twice = rows[:, 1:] == rows[:, :-1]
    twice &= rows[:, 1:] > 0
    if twice.any():
        rows[:, 1:][twice] = 0
        rows = -np.sort(-rows, axis=1)
    width = rows.shape[1]
    while width > 1 and not rows[:, width - 1].any():
        width -= 1
    return rows[:, :width]
