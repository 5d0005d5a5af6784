"""Time of one kind of operation as a function of its sizes: a trend that cannot fall, and corrections near the data.

The trend is a sum of products of the sizes with coefficients that are not negative (overhead, one pass over each
side, the product that counts multiply-adds), so wider never costs less and what lies outside the data stays sane.
On its logarithm's residual sits a Gaussian process over log sizes and over how well the sizes are aligned, since
kernels handle whole blocks of 8, 16 or 32 channels.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import nnls

from deploypruner.graph.labels.atoms import IntArray

Floats = NDArray[np.float64]

_BLOCKS = (1, 8, 16)
_REACH = (0.25, 0.7, 2.0)
_ALIGNMENT = (1.5, 6.0)
_NOISE = (0.02, 0.06, 0.15)
_ALIGNED = 5
# Fewer points than this say nothing about corrections.
_FEW = 5
_OUTLIER = 4.0


class Surface:
    """Predicted nanoseconds for any sizes.

    Args:
        sizes: `[n, k]` sizes of n timed operations.
        ns: `[n]` what they took.

    Attributes:
        columns: Which of the k sizes say something that the others do not.
    """

    def __init__(self, sizes: IntArray, ns: Floats) -> None:
        sizes, ns = _medians(sizes, ns)
        self.columns = _different(sizes)
        self._points = sizes[:, self.columns]
        self._log_ns = np.log(ns)
        fits = [_Fit(self._points, ns, block) for block in (_BLOCKS if self.columns else (1,))]
        self._fit = min(fits, key=lambda fit: fit.loss)

    @property
    def error(self) -> float:
        """Typical relative error on points left out."""
        return self._fit.loss

    def ns(self, sizes: IntArray) -> Floats:
        """Nanoseconds `[m]` for sizes `[m, len(columns)]`."""
        return self._fit.ns(sizes)

    def left_out(self, sizes: IntArray) -> Floats:
        """Nanoseconds `[m]`, for sizes that are among the points as the others predict it."""
        places = {tuple(row): i for i, row in enumerate(self._points.tolist())}
        found = self.ns(sizes)
        for i, row in enumerate(sizes.tolist()):
            if tuple(row) in places:
                found[i] = self._fit.left_out[places[tuple(row)]]
        return found


class _Fit:
    """A trend with sizes padded to `block`, and a Gaussian process on what it leaves."""

    def __init__(self, points: IntArray, ns: Floats, block: int) -> None:
        self._points, self._block = points, block
        self._scale = points.max(axis=0).astype(np.float64) if points.size else np.ones(points.shape[1])
        self._trend = _trend(self._terms(points), ns)
        left = np.log(ns) - np.log(self._terms(points) @ self._trend)
        self._features = _features(points)
        self._weights = np.zeros(len(points))
        self._reach = (1.0, 1.0)
        self.left_out = ns.copy()
        self.loss = float(np.sqrt(np.mean(left**2)))
        if len(points) >= _FEW and points.shape[1]:
            self._correct(left, np.log(ns))

    def ns(self, sizes: IntArray) -> Floats:
        trend = self._terms(sizes) @ self._trend
        if not self._weights.any():
            return np.asarray(trend, np.float64)
        near = _kernel(_features(sizes), self._features, *self._reach)
        return np.asarray(trend * np.exp(near @ self._weights), np.float64)

    def _terms(self, sizes: IntArray) -> Floats:
        """1, every size, and every product of two or all of them, relative to the largest point."""
        padded = -(-sizes // self._block) * self._block / self._scale
        k = sizes.shape[1]
        columns = [np.ones(len(sizes))]
        for count in range(1, k + 1):
            if count <= 2 or count == k:
                columns += [padded[:, list(chosen)].prod(axis=1) for chosen in combinations(range(k), count)]
        return np.stack(columns, axis=1)

    def _correct(self, left: Floats, log_ns: Floats) -> None:
        """Choose reach and noise by the error on points left out (closed form), twice as outliers get noise."""
        noise = np.ones(len(left))
        spread = max(float(np.var(left)), 1e-4)
        for _ in range(2):
            best = np.inf
            for reach in _REACH:
                for alignment in _ALIGNMENT:
                    kernel = spread * _kernel(self._features, self._features, reach, alignment)
                    for level in _NOISE:
                        factor = cho_factor(kernel + np.diag(level**2 * noise))
                        inverse = cho_solve(factor, np.eye(len(left)))
                        weights = inverse @ left
                        missed = weights / np.diag(inverse)
                        loss = float(np.median(np.abs(missed)) + np.mean(np.minimum(np.abs(missed), 0.5)))
                        if loss < best:
                            best, chosen, misses = loss, (reach, alignment, weights), missed
            typical = max(float(np.median(np.abs(misses))) * 1.5, 0.01)
            noise = np.maximum(1.0, (np.abs(misses) / (_OUTLIER * typical)) ** 2 * 25)
            noise[np.abs(misses) <= _OUTLIER * typical] = 1.0
        self._reach, self._weights = chosen[:2], spread * chosen[2]
        self.left_out = np.exp(log_ns - misses)
        self.loss = best


def _trend(terms: Floats, ns: Floats) -> Floats:
    """Coefficients that are not negative, fitted to relative errors."""
    weight = 1 / ns
    found: Floats = nnls(terms * weight[:, None], np.ones(len(ns)))[0]
    if not (terms @ found > 0).all():
        found = found + ns.min() * 1e-3
    if len(ns) < terms.shape[1]:  # too few to tell overhead from work: most of it is work
        reference = float(np.median(ns / terms[:, -1]))
        prior = np.zeros(terms.shape[1])
        prior[-1], prior[0] = 0.8 * reference, 0.2 * float(np.median(ns))
        found = 0.5 * found + 0.5 * prior
    return found


def _features(sizes: IntArray) -> Floats:
    """`[m, 2k]`: logarithms, and how many times 2 divides each size, up to 32."""
    aligned = sum(((sizes % 2**power) == 0).astype(np.float64) for power in range(1, _ALIGNED + 1))
    return np.concatenate([np.log(np.maximum(sizes, 1)), np.broadcast_to(aligned, sizes.shape)], axis=1)


def _kernel(left: Floats, right: Floats, reach: float, alignment: float) -> Floats:
    k = left.shape[1] // 2
    scale = np.array([reach] * k + [alignment] * k)
    a, b = left / scale, right / scale
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T
    return np.asarray(np.exp(-0.5 * np.maximum(squared, 0.0)), np.float64)


def _medians(sizes: IntArray, ns: Floats) -> tuple[IntArray, Floats]:
    """Each size once, with the median of its times."""
    unique, place = np.unique(sizes, axis=0, return_inverse=True)
    place = place.reshape(-1)
    return unique, np.array([np.median(ns[place == i]) for i in range(len(unique))])


def _different(sizes: IntArray) -> list[int]:
    """Columns that say something new: not copies of one before."""
    chosen: list[int] = []
    for column in range(sizes.shape[1]):
        values = sizes[:, column]
        if not any((sizes[:, other] == values).all() for other in chosen):
            chosen.append(column)
    return chosen
