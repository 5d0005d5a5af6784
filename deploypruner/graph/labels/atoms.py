"""The label algebra: which removable atoms live on each index of a tensor axis.

An *atom* is a small integer standing for one thing that can be removed; 0 means "no atom". The *labels* of an
axis of length n are either None (inert: nothing on it can ever be removed) or an int64 array `[n, k]` whose row i
is the set of atoms of index i, padded with 0. **Index i disappears as soon as any of its atoms is removed.**

So what is removed from a tensor is always a union of whole index slices: every tensor stays a box by
construction, and all constraints are expressed by how atoms are shared. Concatenation, slicing and permutation
are array indexing; a product of axes is the union of the row sets. An attention projection of 12 heads x 64
columns has 768 rows `{head_i, column_j}`.

Three facts can be learnt about an atom. They are global and only ever grow:

    same      a ~ b          union-find
    product   a := {b, c}    a disappears from every row in favour of its factors
    frozen    a is never removed, and is dropped from every row (frozen equals inert)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deploypruner.graph.labels.union_find import MAX_FACTORS, Facts, IntArray, Labels, compact

__all__ = ["Atoms", "IntArray", "Labels", "join"]

# Each round of `unify` learns at least one fact; more rounds than this mean two factorisations chase each other.
_MAX_ROUNDS = 40


class Atoms(Facts):
    """All atoms of one traced graph, and the ways to equate, merge and split the axes they live on."""

    def unify(self, left: Labels, right: Labels, why: str) -> Labels:
        """Index i of both axes must vanish together; returns the labels they now share.

        Args:
            left: Labels `[n, k]` or None.
            right: Labels `[n, j]` or None.
            why: What freezes the rest, should one side be unable to shrink.
        """
        if left is right:
            return left
        if left is None or right is None:
            self.freeze(right if left is None else left, why)
            return None
        assert len(left) == len(right), f"cannot unify axes of length {len(left)} and {len(right)}"
        for _ in range(_MAX_ROUNDS):
            a, b = self.canon(left), self.canon(right)
            if a.shape == b.shape and np.array_equal(a, b):
                return left
            self._learn(a, b, (left, right), why)
        if not np.array_equal(self.canon(left), self.canon(right)):
            self.freeze(left, "the model splits this axis in ways that no removal fits")
            self.freeze(right, "the model splits this axis in ways that no removal fits")
        return left

    def _learn(self, a: IntArray, b: IntArray, raw: tuple[IntArray, IntArray], why: str) -> None:
        """One round of `unify`: compare what each side has and the other lacks, and learn the strongest fact."""
        only_a, only_b = _difference(a, b), _difference(b, a)
        count_a, count_b = (only_a > 0).sum(axis=1), (only_b > 0).sum(axis=1)
        for rest, inert, other in (
            (only_b, (count_a == 0) & (count_b > 0), raw[0]),
            (only_a, (count_b == 0) & (count_a > 0), raw[1]),
        ):
            if inert.any():
                self.freeze_like(rest[inert], other[inert], why)
        single = (count_a == 1) & (count_b == 1)
        if single.any():
            self.union(only_a[single, 0], only_b[single, 0])
            return
        a_is_product = self._learn_products(only_a, only_b, (count_a == 1) & (count_b > 1))
        b_is_product = self._learn_products(only_b, only_a, (count_b == 1) & (count_a > 1))
        if a_is_product or b_is_product:
            return
        both = (count_a > 1) & (count_b > 1)
        if both.any():
            self._match_products(only_a[both], only_b[both], why)

    def _learn_products(self, ones: IntArray, many: IntArray, rows: NDArray[np.bool_]) -> bool:
        """Where one side has a single atom and the other several: the atom is their product."""
        atoms, factors = ones[rows, 0], many[rows]
        fits = ~self.are_products(atoms) & ~self.are_products(factors).any(axis=1)
        fits &= (factors > 0).sum(axis=1) <= MAX_FACTORS
        atoms, factors = atoms[fits], factors[fits, :MAX_FACTORS]
        if not len(atoms):
            return False
        # An atom that stands in several rows takes the first row's factors; the next round compares the others.
        _, first = np.unique(atoms, return_index=True)
        atoms, factors = atoms[first], factors[first]
        independent: NDArray[np.bool_] = np.asarray(~np.isin(factors, atoms).any(axis=1))
        if not independent.any():
            independent[:1] = True
        self.set_products(atoms[independent], factors[independent])
        return True

    def _match_products(self, a: IntArray, b: IntArray, why: str) -> None:
        """Both sides are products: equate factors that cut the rows alike, else give up all but the largest."""
        pattern = np.concatenate([np.sort(self._family[a], axis=1), np.sort(self._family[b], axis=1)], axis=1)
        same = (pattern == pattern[0]).all(axis=1)
        a, b = a[same], b[same]
        columns_a, columns_b = self._columns(a), self._columns(b)
        pairs = [(x, y) for x in columns_a.values() for y in columns_b.values() if x.all() and y.all()]
        for x, y in pairs:
            if _same_partition(x, y):
                self.union(x, y)
                return
        for x, y in pairs:
            if self._refine(x, y) or self._refine(y, x):
                return
        froze = False
        for columns in (columns_a, columns_b):
            largest = max(columns, key=lambda family: len(np.unique(columns[family])))
            for family, column in columns.items():
                if family != largest:
                    self.freeze(
                        column[column > 0][:, None], "the model splits this axis in two ways that do not fit together"
                    )
                    froze = True
        if not froze:
            self.freeze(a, "the model splits this axis in two ways that do not fit together")
            self.freeze(b, "the model splits this axis in two ways that do not fit together")

    def _columns(self, rows: IntArray) -> dict[int, IntArray]:
        """Family -> its atom in each row (0 where the row has none)."""
        families = np.where(rows > 0, self._family[rows], 0)
        return {int(f): np.where(families == f, rows, 0).max(axis=1) for f in np.unique(families[families > 0])}

    def _refine(self, fine: IntArray, coarse: IntArray) -> bool:
        """Where `fine` cuts every class of `coarse` into equally many parts: fine := coarse * remainder.

        This is what reconciles 3h x k with h x 3k, a grouped convolution followed by a q/k/v chunk.
        """
        pairs = np.unique(np.stack([fine, coarse], axis=1), axis=0)
        if len(np.unique(pairs[:, 0])) != len(pairs):
            return False
        parts: dict[int, list[int]] = {}
        for part, whole in pairs.tolist():
            parts.setdefault(whole, []).append(part)
        sizes = {len(p) for p in parts.values()}
        if len(sizes) != 1 or len(parts) < 2 or sizes == {1} or set(pairs[:, 0].tolist()) & parts.keys():
            return False
        remainder = self.fresh(sizes.pop())
        assert remainder is not None, "a remainder family has at least two atoms"
        products = [
            (part, whole, rest)
            for whole, fines in parts.items()
            for rest, part in zip(remainder[:, 0].tolist(), fines, strict=True)
        ]
        table = np.array(products)
        self.set_products(table[:, 0], table[:, 1:])
        return True

    # ------------------------------------------------------------------ moving labels

    def flatten(self, axes: Sequence[Labels], sizes: Sequence[int]) -> Labels:
        """Row-major product of axes: index (i, j) carries the atoms of i and of j. Inert axes only repeat."""
        columns = []
        for d, labels in enumerate(axes):
            if labels is None:
                continue
            shape = [-1 if e == d else 1 for e in range(len(sizes))]
            index = np.broadcast_to(np.arange(sizes[d]).reshape(shape), sizes).reshape(-1)
            columns.append(labels[index])
        return np.concatenate(columns, axis=1) if columns else None

    def factor(self, block: IntArray) -> tuple[list[Labels], IntArray]:
        """Split labels `[s0, .., sm, k]` into what is common to whole sub-blocks of each axis, and the rest.

        Returns:
            Per axis the atoms shared by everything at one of its indices, and the residual `block` without them.
        """
        sizes, k = block.shape[:-1], block.shape[-1]
        residual = block.copy()
        axes: list[Labels] = []
        for d, size in enumerate(sizes):
            if size == 1:
                axes.append(None)
                continue
            rows = np.moveaxis(block, d, 0).reshape(size, -1, k)
            common = rows[:, 0, :].copy()
            for q in range(k):
                everywhere = (rows == common[:, None, q : q + 1]).any(axis=2).all(axis=1)
                common[~everywhere, q] = 0
            if not common.any():
                axes.append(None)
                continue
            axes.append(common)
            spread = common.reshape([size if e == d else 1 for e in range(len(sizes))] + [k])
            for q in range(k):
                residual[residual == spread[..., q : q + 1]] = 0
        return axes, residual

    def split(self, labels: Labels, sizes: Sequence[int]) -> list[Labels]:
        """Labels of the axes that an axis of length prod(sizes) is reshaped into.

        What is not a product yet is forced into one: index c of the old axis becomes {i, j} of two new families.
        """
        labels = self.live(labels)
        if labels is None:
            return [None] * len(sizes)
        axes, residual = self.factor(labels.reshape(*sizes, -1))
        if not residual.any():
            return axes
        new = [self.fresh(size) for size in sizes]
        flat = residual.reshape(-1, residual.shape[-1])
        self.unify(flat, self.flatten(new, sizes), "split into axes one of which is fixed")
        return [join(old, extra) for old, extra in zip(axes, new, strict=True)]


def join(left: Labels, right: Labels) -> Labels:
    """Row-wise union of two label arrays of one axis."""
    if left is None or right is None:
        return right if left is None else left
    return np.concatenate([left, right], axis=1)


def _difference(a: IntArray, b: IntArray) -> IntArray:
    """Per row, the atoms of `a` that `b` lacks."""
    shared = (a[:, :, None] == b[:, None, :]).any(axis=2)
    return compact(np.where(shared, 0, a))


def _same_partition(x: IntArray, y: IntArray) -> bool:
    pairs = len(np.unique(np.stack([x, y]), axis=1).T)
    return pairs == len(np.unique(x)) == len(np.unique(y))
