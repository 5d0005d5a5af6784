"""Cross-layer equalization: channels of one tensor brought to one size, the function unchanged.

One scale for a whole tensor leaves no steps for a channel that is small; weights have a scale per channel and bear
the difference. With a the size of a channel and w what the layers that read it make of it, the factors are
d = sqrt(a / w) (Nagel et al. 2019, arXiv:1906.04721, equation 11; SmoothQuant, arXiv:2211.10438, equation 4 with its
alpha 0.5). Ours:

1. w is taken after channels have been divided by a, as a share of its row. Factors then depend on what the network
   computes alone, not on ranges that were hidden in its weights, nor on an order of layers.
2. The size is the root mean square, the largest value, or the mean of both; `repair` measures which is best. By their
   largest values, all channels of a new sample go beyond their ranges, where before only the largest ones did.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import Array, constant
from deploypruner.quantize.running import ChannelStatistics
from deploypruner.quantize.scaling import Scalable

Size = Literal["root mean square", "largest value", "mean of both"]
SIZES: tuple[Size, ...] = ("root mean square", "mean of both", "largest value")

Statistics = Mapping[str, ChannelStatistics]
ROOMS = (1.25, 2.0, 4.0, 16.0)
"""What clips may leave above the largest value seen of a channel, the first that unseen samples do not go beyond.
Each doubling costs a bit of int8, where channels that were not enlarged at all could lose all eight."""

# Least size of a channel behind an activation function, in sizes before it: one that was off on the calibration data
# is not off on all data.
_LEAST = 1 / 8
_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "PRelu")


def equalizing_factors(
    graph: ir.Graph,
    found: Scalable,
    statistics: Statistics,
    *,
    size: Size,
    read: frozenset[str],
    room: float = ROOMS[0],
) -> Array:
    """What to divide the channels by, [labels]; 1 where they have to stay.

    Args:
        graph: fp32.
        found: Its channels.
        statistics: Of every tensor with channels.
        size: What counts as the size of a channel.
        read: Names of the tensors that int8 operators read, whose sizes count.
        room: What a clip leaves above the largest value seen of a channel, one of `ROOMS`.
    """
    makers = {str(value.name): node for node in graph for value in node.outputs}
    sizes = {name: _size(statistics[name], size) for name in sorted(read & statistics.keys())}
    for name in sizes:
        maker = makers.get(name)
        before = None if maker is None or maker.inputs[0] is None else statistics.get(str(maker.inputs[0].name))
        if maker is not None and maker.op_type in _ACTIVATIONS and before is not None:
            sizes[name] = np.maximum(sizes[name], _LEAST * _size(before, size))
    factors = _typical(found, sizes)
    weights = _weights(graph, found, factors)
    factors = factors / np.sqrt(np.where(weights > 0, weights, 1.0))
    return np.where(found.free, _within_bounds(found, factors, statistics, room), 1.0)


def scaled_ranges(found: Scalable, statistics: Statistics, factors: Array) -> dict[str, tuple[float, float]]:
    """The range of every tensor once its channels are divided."""
    ranges = {}
    for name, seen in statistics.items():
        d = found.of(name, factors)
        ranges[name] = float((seen.low / d).min()), float((seen.high / d).max())
    return ranges


def _size(seen: ChannelStatistics, size: Size) -> Array:
    """Of every channel [C], up to a factor that all have in common."""
    largest, spread = np.maximum(np.abs(seen.low), np.abs(seen.high)), np.sqrt(seen.mean_square)
    both = {"largest value": largest, "root mean square": spread, "mean of both": np.sqrt(largest * spread)}
    found: Array = both[size]
    return found


def _typical(found: Scalable, seen: Mapping[str, Array]) -> Array:
    """Size of each label: the geometric mean over the tensors that have it, so that none of them dominates."""
    logs, counts = np.zeros(len(found.free)), np.zeros(len(found.free))
    for name, largest in seen.items():
        labels, there = found.labels[name], largest > 0
        np.add.at(logs, labels[there], np.log(largest[there]))
        np.add.at(counts, labels[there], 1)
    typical: Array = np.exp(logs / np.maximum(counts, 1))
    return _with_unseen(found, typical, counts > 0)


def _with_unseen(found: Scalable, typical: Array, known: Array) -> Array:
    """Channels that are always zero get the factor of a typical one of their group."""
    for group in np.unique(found.groups[(found.groups >= 0) & ~known]):
        members = found.groups == group
        others = typical[members & known]
        typical[members & ~known] = np.median(others) if others.size else 1.0
    return typical


def _weights(graph: ir.Graph, found: Scalable, factors: Array) -> Array:
    """For every label the largest share of a row's largest weight that the rows give to it, once divided."""
    free = np.where(found.free, factors, 1.0)
    largest = np.zeros(len(free))
    made = {change.stored: change for change in found.changes if not change.reads}
    for change in found.changes:
        if not change.reads:
            continue
        values = np.abs(np.asarray(constant(graph.initializers[change.stored]), np.float64))
        values = values * found.spread(change, values.shape, free)
        rows = made[change.stored].axis if change.stored in made else int(change.axis == 0)
        top = values.max(axis=tuple(a for a in range(values.ndim) if a != rows), keepdims=True)
        shares = values / np.where(top > 0, top, 1.0)
        labels = found.labels[change.tensor]
        if change.groups > 1:
            per_row = shares.max(axis=tuple(range(2, shares.ndim)))  # [O, I / G]
            grouped = per_row.reshape(change.groups, -1, per_row.shape[1]).max(axis=1)
            np.maximum.at(largest, labels, grouped.reshape(-1))
        else:
            np.maximum.at(largest, labels, shares.max(axis=tuple(a for a in range(values.ndim) if a != change.axis)))
    return largest


def _within_bounds(found: Scalable, factors: Array, statistics: Statistics, room: float) -> Array:
    """Channels on whose way a clip stands are enlarged alone, and by no more than leaves room below its bound."""
    bounded = np.isfinite(found.bounds) & found.free
    factors = factors.copy()
    for group in np.unique(found.groups[bounded]):
        members = (found.groups == group) & found.free
        factors[members] /= factors[members].max()
    least = np.zeros(len(factors))
    for name, seen in statistics.items():
        labels = found.labels[name]
        np.maximum.at(least, labels, room * seen.high / found.bounds[labels])
    return np.where(bounded, np.minimum(1.0, np.maximum(factors, least)), factors)
