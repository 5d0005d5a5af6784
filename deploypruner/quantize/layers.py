"""Convolutions and matrix products as products of matrices, on sampled rows of their inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from deploypruner.onnx_graph import Array, constant, operand, optional
from deploypruner.quantize.running import Feeds, run

_LAYERS = ("Conv", "Gemm", "MatMul")
# Bytes of rows that are held at once.
_HELD_BYTES = 256 * 2**20


@dataclass(frozen=True)
class WeightedLayer:
    """A layer with weights of its own.

    Args:
        node: It.
        input: Name of the tensor it reads.
        weight: Name of its stored weights.
        bias: Of its stored bias, "" without.
        groups: Of a convolution, 1 for others.
        matrix: Its weights [G, O / G, K].
    """

    node: ir.Node
    input: str
    weight: str
    bias: str
    groups: int
    matrix: Array

    def stored(self, matrix: Array) -> Array:
        """Weights [G, O / G, K] in the shape in which they are stored."""
        shape = np.asarray(constant(operand(self.node, 1))).shape
        if is_transposed(self.node):
            return np.ascontiguousarray(matrix[0].T)
        return matrix.reshape(shape)

    @property
    def takes_bias(self) -> bool:
        """Has it a bias of its own, or a place for one? A matrix product has none."""
        return bool(self.bias) or (self.node.op_type != "MatMul" and optional(self.node, 2) is None)

    @property
    def outputs(self) -> int:
        """O."""
        return self.matrix.shape[0] * self.matrix.shape[1]

    def rows(self, x: Array, count: int, rng: np.random.Generator) -> Array:
        """What the weights are multiplied with at `count` random output positions of every sample, [G, n, K]."""
        if self.node.op_type != "Conv":
            wide = x.reshape(len(x) if x.ndim > 1 else 1, -1, x.shape[-1])
            places = rng.permutation(wide.shape[1])[:count]
            return wide[:, places].reshape(1, -1, x.shape[-1])
        patches = _patches(self.node, x, count, rng)  # [N, C, taps, n]
        samples, channels, taps, places = patches.shape
        split = patches.reshape(samples, self.groups, channels // self.groups * taps, places)
        return split.transpose(1, 0, 3, 2).reshape(self.groups, samples * places, -1)


def layers_of(graph: ir.Graph, chosen: Collection[ir.Node]) -> list[WeightedLayer]:
    """Those of the chosen nodes that have stored weights which no other node reads, in the graph's order."""
    found = []
    for node in graph:
        weight = optional(node, 1)
        if node not in chosen or node.op_type not in _LAYERS or weight is None or not weight.is_initializer():
            continue
        bias, values = optional(node, 2), constant(weight)
        if len(weight.uses()) != 1 or values is None or node.attributes.get_int("transA", 0) != 0:
            continue
        if node.op_type != "Conv" and values.ndim != 2:
            continue
        own_bias = bias is not None and bias.is_initializer() and len(bias.uses()) == 1
        groups = node.attributes.get_int("group", 1) if node.op_type == "Conv" else 1
        flat = values.T[None] if is_transposed(node) else values.reshape(groups, len(values) // groups, -1)
        name = str(bias.name) if bias is not None and own_bias else ""
        found.append(
            WeightedLayer(node, str(operand(node, 0).name), str(weight.name), name, groups, flat.astype(float))
        )
    return found


def sampled_rows(
    model: onnx.ModelProto, layers: Sequence[WeightedLayer], batches: Iterable[Feeds], *, rows: int, seed: int
) -> Iterator[tuple[WeightedLayer, Array]]:
    """Rows of every layer's input on the float network, [G, n, K], about `rows` of them in the order of the samples.

    The network runs as often as holding all rows in turn takes.
    """
    held = list(batches)
    samples = sum(len(feeds[0]) if feeds[0].ndim else 1 for feeds in held)
    each, waiting = -(-rows // samples), list(layers)
    while waiting:
        part: list[WeightedLayer] = []
        size = 0
        while waiting and (not part or size + _bytes(waiting[0], rows) < _HELD_BYTES):
            size += _bytes(waiting[0], rows)
            part.append(waiting.pop(0))
        rng = np.random.default_rng(seed)
        found: list[list[Array]] = [[] for _ in part]
        names = list(dict.fromkeys(layer.input for layer in part))
        for values in run(model, held, names):
            tensors = dict(zip(names, values, strict=True))
            for layer, own in zip(part, found, strict=True):
                own.append(layer.rows(tensors[layer.input], each, rng))
        for layer, own in zip(part, found, strict=True):
            yield layer, np.concatenate(own, axis=1)


def _bytes(layer: WeightedLayer, rows: int) -> int:
    return 4 * rows * layer.groups * layer.matrix.shape[2]


def is_transposed(node: ir.Node) -> bool:
    """Do inputs lie on axis 0 of the stored weights?"""
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not node.attributes.get_int("transB", 0))


def _patches(node: ir.Node, x: Array, count: int, rng: np.random.Generator) -> Array:
    """Taps of a convolution at random positions, [N, C, taps, n]."""
    weight = np.asarray(constant(operand(node, 1)))
    kernel, axes = weight.shape[2:], weight.ndim - 2
    strides = node.attributes.get_ints("strides", (1,) * axes)
    dilations = node.attributes.get_ints("dilations", (1,) * axes)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    before, behind = _padding(node, x.shape[2:], spans, strides)
    padded = np.pad(x, ((0, 0), (0, 0), *zip(before, behind, strict=True)))
    sizes = [(n - span) // s + 1 for n, span, s in zip(padded.shape[2:], spans, strides, strict=True)]
    total = int(np.prod(sizes))
    places = np.unravel_index(rng.permutation(total)[:count], sizes)
    taps = []
    for tap in product(*map(range, kernel)):
        at: list[Any] = [p * s + d * t for p, s, d, t in zip(places, strides, dilations, tap, strict=True)]
        taps.append(padded[(..., *at)])
    return np.stack(taps, axis=2)


def _padding(
    node: ir.Node, inner: Sequence[int], spans: Sequence[int], strides: Sequence[int]
) -> tuple[list[int], list[int]]:
    automatic = node.attributes.get_string("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        totals = [max(0, (-(-n // s) - 1) * s + span - n) for n, s, span in zip(inner, strides, spans, strict=True)]
        less, more = [total // 2 for total in totals], [total - total // 2 for total in totals]
        return (less, more) if automatic == "SAME_UPPER" else (more, less)
    pads = list(node.attributes.get_ints("pads", (0,) * 2 * len(inner))) if automatic == "NOTSET" else []
    pads = pads or [0] * 2 * len(inner)
    return pads[: len(inner)], pads[len(inner) :]
