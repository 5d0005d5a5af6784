"""Steps of int8 weights: one per output channel, zero point 0."""

from __future__ import annotations

import numpy as np

from deploypruner.onnx_graph import Array

MULTIPLES, REDUCED = 127, 64
"""Of a step on either side of zero, as ONNX Runtime's quantizer counts them with 8 and with 7 bits."""


def largest_by_channel(rows: Array) -> Array:
    """The largest absolute weight of each output channel, [O, K] -> [O] in float32.

    Channels whose weights are all zero get the typical value of their layer. The quantizer would take scale 1, and
    since a bias is stored in steps of input scale x weight scale, the bias of such a channel would be rounded away.
    """
    largest = np.abs(rows).max(axis=1)
    typical = np.median(largest[largest > 0]) if largest.any() else 0.0
    return np.where(largest > 0, largest, typical).astype(np.float32)


def weight_steps(matrix: Array, *, reduce_range: bool) -> Array:
    """The quantizer's scales for weights [G, O / G, K], as [G, O / G, 1]; 1 for a layer of zeros."""
    groups, per_group, _ = matrix.shape
    largest = largest_by_channel(matrix.reshape(groups * per_group, -1))
    steps = (largest.astype(float) / (REDUCED if reduce_range else MULTIPLES)).astype(np.float32)
    return np.where(steps > 0, steps, 1.0).reshape(groups, per_group, 1)
