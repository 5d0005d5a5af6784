"""The range of every activation, chosen among several methods by the error of what the next layer computes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from deploypruner.onnx_graph import Array
from deploypruner.quantize.layers import WeightedLayer, sampled_rows
from deploypruner.quantize.rounding import ActivationGrid
from deploypruner.quantize.running import Feeds, run

Range = tuple[float, float]

_BINS, _LEVELS, _ROWS = 2048, 256, 1024
_PERCENTILES = (99.9, 99.99, 99.999)
# Widths that mse and entropy try, relative to min-max.
_WIDTHS = np.linspace(0.1, 1.0, 64)


@dataclass(frozen=True)
class Choice:
    """Of a range.

    Args:
        method: That it follows from.
        range: It.
        error: Square error of what is computed from the tensor, relative to that of min-max.
    """

    method: str
    range: Range
    error: float


@dataclass
class Histogram:
    """Values of one tensor, counted.

    Args:
        low: Least value.
        high: Largest value, above it.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        self.counts = np.zeros(_BINS)

    def add(self, values: Array) -> None:
        """Count; what is beyond the range goes into the last bin on its side."""
        clipped = np.clip(values, self.low, self.high)
        self.counts += np.histogram(clipped, _BINS, (self.low, self.high))[0]

    @property
    def centres(self) -> Array:
        """Of the bins."""
        edges = np.linspace(self.low, self.high, _BINS + 1)
        return (edges[:-1] + edges[1:]) / 2

    def mean_square(self, found: Range) -> float:
        """Mean square error of the values in the numbers of a range."""
        off = np.square(ActivationGrid(*found).quantized(self.centres) - self.centres)
        return float((off * self.counts).sum() / self.counts.sum())

    @property
    def variance(self) -> float:
        """Of the values."""
        mean = (self.centres * self.counts).sum() / self.counts.sum()
        return float((np.square(self.centres - mean) * self.counts).sum() / self.counts.sum())

    def candidates(self) -> dict[str, Range]:
        """Name of a method -> its range, which always holds 0."""
        found: dict[str, Range] = {"minmax": (self.low, self.high)}
        shares = np.cumsum(self.counts) / self.counts.sum()
        edges = np.linspace(self.low, self.high, _BINS + 1)
        for percent in _PERCENTILES:  # half of what is cut on either side, as ONNX Runtime's calibrator has it
            cut = (100 - percent) / 200
            first, last = int(np.searchsorted(shares, cut)), int(np.searchsorted(shares, 1 - cut))
            found[f"percentile {percent:g}"] = (float(edges[first]), float(edges[min(_BINS, last + 1)]))
        narrower = [(width * self.low, width * self.high) for width in _WIDTHS]
        found["mse"] = min(narrower, key=self.mean_square)
        found["entropy"] = min(narrower, key=self._divergence)
        return {name: (min(low, 0.0), max(high, 0.0)) for name, (low, high) in found.items()}

    def _divergence(self, found: Range) -> float:
        """Kullback-Leibler divergence of the clipped distribution from its form in 256 levels (TensorRT, 2017)."""
        low, high = found
        inside = (self.centres >= low) & (self.centres <= high)
        if inside.sum() < 2:
            return float("inf")
        clipped = self.counts[inside].copy()
        clipped[0] += self.counts[self.centres < low].sum()
        clipped[-1] += self.counts[self.centres > high].sum()
        there = clipped > 0
        level = np.minimum((np.arange(len(clipped)) * _LEVELS) // len(clipped), _LEVELS - 1)
        total = np.bincount(level, self.counts[inside], _LEVELS)
        filled = np.bincount(level, there.astype(float), _LEVELS)
        spread = np.where(there, (total / np.maximum(filled, 1))[level], 0.0)
        p, q = clipped / clipped.sum(), np.maximum(spread / max(spread.sum(), 1e-30), 1e-12)
        return float((p[there] * np.log(p[there] / q[there])).sum())


def histograms(model: onnx.ModelProto, ranges: Mapping[str, Range], batches: Iterable[Feeds]) -> dict[str, Histogram]:
    """Of the tensors with a range that is more than a point."""
    found = {name: Histogram(*ends) for name, ends in ranges.items() if ends[1] > ends[0]}
    names = list(found)
    for values in run(model, batches, names) if names else ():
        for name, array in zip(names, values, strict=True):
            found[name].add(array)
    return found


def choose_ranges(
    model: onnx.ModelProto,
    layers: Sequence[WeightedLayer],
    found: Mapping[str, Histogram],
    batches: Iterable[Feeds],
    *,
    others: Collection[str],
) -> dict[str, Choice]:
    """For every tensor the method whose range keeps best what is computed from it.

    Args:
        model: fp32.
        layers: That will read int8.
        found: Histograms of the tensors.
        batches: To sample the layers' inputs from.
        others: Tensors that something else than a layer reads, an addition: there their own error counts.
    """
    candidates = {name: histogram.candidates() for name, histogram in found.items()}
    errors = {name: dict.fromkeys(ways, 0.0) for name, ways in candidates.items()}
    read = [layer for layer in layers if layer.input in found]
    for name in set(found) - {layer.input for layer in read} | (set(others) & set(found)):
        for way, ends in candidates[name].items():
            errors[name][way] += found[name].mean_square(ends) / (found[name].variance or 1.0)
    for layer, rows in sampled_rows(model, read, batches, rows=_ROWS, seed=0):
        weights = layer.matrix.transpose(0, 2, 1).astype(np.float32)
        answers = np.matmul(rows, weights)
        spread = float(np.square(answers - answers.mean(axis=1, keepdims=True)).sum()) or 1.0
        for way, ends in candidates[layer.input].items():
            off = (ActivationGrid(*ends).quantized(rows) - rows).astype(np.float32)
            errors[layer.input][way] += float(np.square(np.matmul(off, weights)).sum()) / spread
    chosen = {}
    for name, ways in errors.items():
        best = min(ways, key=ways.__getitem__)
        chosen[name] = Choice(best, candidates[name][best], ways[best] / (ways["minmax"] or 1.0))
    return chosen
