"""How far numbers are from others: the errors that regression and everything without a better measure share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

# Numbers that are looked at in float64 at a time.
_AT_A_TIME = 1 << 22


def relative_error(output: Array, reference: Array) -> float:
    """Root relative squared error, sqrt(sum (a - b)^2 / sum (b - mean of b over the samples)^2).

    0 for the same numbers, 1 for as good as always answering the mean, so that a model that ignores its input
    cannot look good because its numbers are large. Where the reference is the same for every sample (or there is one
    sample only), the error is relative to the reference itself; infinite where an answer is not finite.

    Args:
        output: a, `[N, ...]`.
        reference: b, of the same shape.

    Source:
        The square root of the relative squared error, 1 - R2; Witten, Frank, Hall, "Data Mining", 3rd ed., sec. 5.8.
    """
    error, spread, size = _sums(output, reference)
    scale = _scale(spread, size)
    if error == 0:
        return 0.0
    return float(np.sqrt(error / scale)) if scale > 0 and np.isfinite(error) else float("inf")


def r2(output: Array, labels: Array) -> float:
    """Coefficient of determination, 1 - sum (a - b)^2 / sum (b - mean of b over the samples)^2, all numbers pooled.

    Several numbers per sample: sklearn's `r2_score(..., multioutput="variance_weighted")`. Labels that do not vary
    give 1 for the same numbers and 0 for others; answers that are not finite give minus infinity.
    """
    error, spread, _ = _sums(output, labels)
    if not np.isfinite(error):
        return float("-inf")
    if spread == 0:
        return 1.0 if error == 0 else 0.0
    return float(1 - error / spread)


def variance(numbers: Array) -> float:
    """Mean square of `[N, ...]` around their mean over the samples, what `relative_error` divides by; 0 of zeros."""
    _, spread, size = _sums(numbers, numbers)
    return _scale(spread, size) / max(1, numbers.size)


def mean_absolute_error(output: Array, labels: Array) -> float:
    """Mean of |a - b| over all numbers, in the unit of the labels."""
    total = sum(float(np.abs(a - b).sum()) for a, b in _chunks(output, labels))
    return total / max(1, output.size)


def agreement_of(error: float) -> float:
    """1 - relative error; 0 where that is not finite."""
    return float(1 - error) if np.isfinite(error) else 0.0


def _scale(spread: float, size: float) -> float:
    return spread if spread > 1e-12 * size else size


def _sums(output: Array, reference: Array) -> tuple[float, float, float]:
    """Sums of squares: of the difference, of the reference around its mean over the samples, of the reference."""
    mean = reference.mean(axis=0, dtype=np.float64)
    error = spread = size = 0.0
    for a, b in _chunks(output, reference):
        error += float(np.square(a - b).sum())
        spread += float(np.square(b - mean).sum())
        size += float(np.square(b).sum())
    return error, spread, size


def _chunks(output: Array, reference: Array) -> Iterator[tuple[Array, Array]]:
    rows = max(1, _AT_A_TIME // max(1, output[:1].size))
    for start in range(0, len(output), rows):
        with np.errstate(invalid="ignore", over="ignore"):
            yield output[start : start + rows].astype(np.float64), reference[start : start + rows].astype(np.float64)
