"""Weights rounded up or down for the sake of a layer's outputs, and what the rounding moves the bias by.

The objective is AdaRound's (Nagel et al. 2020, arXiv:2004.10568, equation 13): |(W - W') x|^2 over the layer's
quantized inputs x. It is solved weight by weight as GPTQ does (Frantar et al. 2022, arXiv:2210.17323, algorithm 1):
the error of each weight goes into those that are still to be rounded, through the inverse of the Gram matrix. Ours:
weights that are zero stay zero, and pass on what the errors of others made of them. The bias then takes the mean of
what is left (Nagel et al. 2019, arXiv:1906.04721, section 4.2, measured on data instead of batch norms).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from deploypruner.onnx_graph import Array
from deploypruner.quantize.layers import WeightedLayer

# What is added to the Gram matrix's diagonal, relative to its mean; columns rounded between two updates of the rest.
_DAMPING, _BLOCK = 0.01, 64


@dataclass(frozen=True)
class ActivationGrid:
    """The 256 numbers that an activation can be.

    Args:
        low: Least of its range, at most 0.
        high: Largest of its range, at least 0.
    """

    low: float
    high: float

    def quantized(self, x: Array) -> Array:
        """The nearest of the numbers for each, as u8 with a zero point has them."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        scale = (high - low) / 255 or 1.0
        zero = np.round(-low / scale)
        found: Array = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
        return found


@dataclass(frozen=True)
class Rounded:
    """What rounding a layer's weights could do.

    Args:
        layer: Which.
        nearest: Weights [G, O / G, K] rounded to the nearest.
        adapted: Rounded for the outputs; None where that was no better on rows that judge.
        shifts: What to add to the bias [O] with either, None where the mean did not help on rows that judge.
        errors: Of the layer's outputs with either on rows that judge, squared and relative to their spread.
        corrected: With the bias.
    """

    layer: WeightedLayer
    nearest: Array
    adapted: Array | None
    shifts: tuple[Array | None, Array | None]
    errors: tuple[float, float]
    corrected: tuple[float, float]


def rounded(layer: WeightedLayer, rows: Array, judging: Array, *, grid: ActivationGrid, steps: Array) -> Rounded:
    """Round a layer's weights.

    Args:
        layer: With its weights [G, O / G, K].
        rows: Of its input [G, n, K].
        judging: As `rows`, of samples that decide what is better.
        grid: Of its input.
        steps: Of its weights [G, O / G, 1].
    """
    weights = layer.matrix
    largest = np.round(np.abs(weights).max(axis=2, keepdims=True) / steps)
    nearest = np.clip(np.round(weights / steps), -largest, largest) * steps
    seen = grid.quantized(rows)
    try:
        adapted = adapted_rounding(weights, steps, np.matmul(seen.transpose(0, 2, 1), seen), largest)
    except np.linalg.LinAlgError:  # inputs of sizes so far apart that not even the damped matrix has an inverse
        adapted = nearest
    both = []
    for values in (nearest, adapted):
        left = _left(weights, rows, values, seen)
        both.append((values, left.mean(axis=1)))
    unseen = grid.quantized(judging)
    answers = np.matmul(judging, weights.transpose(0, 2, 1))
    spread = float(np.square(answers - answers.mean(axis=1, keepdims=True)).sum()) or 1.0
    errors, corrected, shifts = [], [], []
    for values, mean in both:
        left = _left(weights, judging, values, unseen)
        errors.append(float(np.square(left).sum()) / spread)
        corrected.append(float(np.square(left - mean[:, None]).sum()) / spread)
        shifts.append(mean.reshape(-1) if corrected[-1] < errors[-1] else None)
    better = errors[1] < errors[0]
    return Rounded(
        layer,
        nearest,
        adapted if better else None,
        (shifts[0], shifts[1]),
        (errors[0], errors[1]),
        (corrected[0], corrected[1]),
    )


def adapted_rounding(weights: Array, steps: Array, gram: Array, largest: Array) -> Array:
    """Multiples of the steps that keep W x, by the Gram matrix of x.

    Args:
        weights: [G, O, K]; zeros stay zeros.
        steps: [G, O, 1].
        gram: Sum of x x^T [G, K, K].
        largest: Multiple that may not be exceeded [G, O, 1].
    """
    order = np.argsort(-np.diagonal(gram, axis1=1, axis2=2), axis=1, kind="stable")  # [G, K]
    upper = _upper(gram, order)
    left = np.take_along_axis(weights, order[:, None], axis=2)
    pruned = left == 0
    found = np.zeros_like(left)
    width = left.shape[2]
    for begin in range(0, width, _BLOCK):
        end = min(begin + _BLOCK, width)
        errors = np.zeros((*left.shape[:2], end - begin))
        for column in range(begin, end):
            value = left[:, :, column]
            multiple = np.clip(np.round(value / steps[:, :, 0]), -largest[:, :, 0], largest[:, :, 0])
            found[:, :, column] = np.where(pruned[:, :, column], 0, multiple * steps[:, :, 0])
            error = (value - found[:, :, column]) / upper[:, column, column, None]
            errors[:, :, column - begin] = error
            left[:, :, column:end] -= error[:, :, None] * upper[:, None, column, column:end]
        left[:, :, end:] -= np.matmul(errors, upper[:, begin:end, end:])
    back = np.argsort(order, axis=1)
    return np.take_along_axis(found, back[:, None], axis=2)


def _upper(gram: Array, order: Array) -> Array:
    """U with U^T U the inverse of the damped Gram matrix, its rows and columns in this order, [G, K, K]."""
    width = gram.shape[1]
    mean = np.diagonal(gram, axis1=1, axis2=2).mean(axis=1)[:, None, None]
    damped = gram.astype(float) + np.where(mean > 0, _DAMPING * mean, 1.0) * np.eye(width)
    rows = np.take_along_axis(damped, order[:, :, None], axis=1)
    ordered = np.take_along_axis(rows, order[:, None], axis=2)
    inverse = np.linalg.inv(ordered)
    found: Array = np.linalg.cholesky((inverse + inverse.transpose(0, 2, 1)) / 2).transpose(0, 2, 1)
    return found


def _left(weights: Array, x: Array, values: Array, quantized: Array) -> Array:
    """W x - W' x' [G, n, O / G]."""
    found: Array = np.matmul(x, weights.transpose(0, 2, 1)) - np.matmul(quantized, values.transpose(0, 2, 1))
    return found
