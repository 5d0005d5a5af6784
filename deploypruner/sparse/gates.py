"""Squeeze and excitation in C4: the mean over an image, and a product with one number per channel.

    x -> ReduceMean | GlobalAveragePool -> any small layers -> s;  x, s -> Mul -> QuantizeLinear

Each half is an operation of its own; what stands between them stays in OpenVINO. So is the mean before a classifier.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx

from deploypruner.sparse.layer import QUAD, Operation, QuantizedTensor
from deploypruner.sparse.onnx_graph import OnnxGraph, attribute
from deploypruner.sparse.qdq import NoMatch, read_activation, read_quantize

_SPATIAL = (2, 3)
# What the sums of an image must fit into, see kernels.h.
_MOST_PIXELS = 2**23


@dataclass(frozen=True, kw_only=True)
class Gate(Operation):
    """Either half."""

    @property
    def macs(self) -> int:
        """See `Operation.macs`."""
        return self.x.channels * self.x.pixels

    @property
    def steps(self) -> int:
        """See `Operation.steps`."""
        return -(-self.x.channels // QUAD)

    @property
    def form(self) -> Hashable:
        """See `Operation.form`."""
        return self.kind, self.x.shape

    def attributes(self) -> dict[str, Any]:
        """See `Operation.attributes`."""
        height, width = self.x.size
        return {"channels": self.x.channels, "height": height, "width": width, "zero_point": self.x.zero_point}


@dataclass(frozen=True, kw_only=True)
class Pool(Gate):
    """The mean of every channel over the image, in real numbers.

    Args:
        mean: Float tensor it gives, [N, C, 1, 1] or [N, C].
        flat: Is it [N, C]?
    """

    op_type: ClassVar[str] = "PoolC4"

    mean: str
    flat: bool

    def attributes(self) -> dict[str, Any]:
        """See `Operation.attributes`."""
        return super().attributes() | {"factor": self.x.scale / self.x.pixels}


@dataclass(frozen=True, kw_only=True)
class Scale(Gate):
    """Every channel times a number of its own.

    Args:
        y: The product, quantized.
        by: Float tensor [N, C, 1, 1] of the numbers.
    """

    op_type: ClassVar[str] = "ScaleC4"

    y: QuantizedTensor
    by: str

    def attributes(self) -> dict[str, Any]:
        """See `Operation.attributes`."""
        ratio = self.x.scale / self.y.scale
        return super().attributes() | {"output_zero_point": self.y.zero_point, "ratio": ratio}


def find_gates(graph: OnnxGraph) -> Iterator[Gate]:
    """Every pool and every scaled activation that our kernels can compute."""
    for node in graph.nodes:
        find = _FINDERS.get(node.op_type)
        if find is not None:
            try:
                yield find(graph, node)
            except NoMatch:  # the report has a line for what has weights only
                continue


def _pool(graph: OnnxGraph, node: onnx.NodeProto) -> Pool:
    x = _image(graph, node.input[0])
    keeps = True
    if node.op_type == "ReduceMean":
        if _axes(graph, node) != _SPATIAL:
            raise NoMatch("it is no mean over the image")
        keeps = bool(attribute(node, "keepdims", 1))
    if x.pixels > _MOST_PIXELS:
        raise NoMatch("its image is too large")
    mean = node.output[0]
    return Pool(name=mean, kind="pool", x=x, mean=mean, flat=not keeps, nodes=(node,))


def _scale(graph: OnnxGraph, node: onnx.NodeProto) -> Scale:
    readers = graph.readers(node.output[0])
    if node.output[0] in graph.outputs or [reader.op_type for reader in readers] != ["QuantizeLinear"]:
        raise NoMatch("its product is needed in float")
    y = read_quantize(graph, readers[0], channels_last=False)
    if y.name in graph.outputs:
        raise NoMatch("its quantized form is an output of the model")
    for name, by in (tuple(node.input), tuple(reversed(node.input))):
        shape, whole = graph.shape(by), graph.shape(name)
        if not shape or not whole or len(whole) != 4 or tuple(shape) != (whole[0], whole[1], 1, 1):
            continue
        if graph.constant(by) is None and whole[1:] == y.shape and (whole[2:] != (1, 1)):
            x = _image(graph, name)
            return Scale(name=node.output[0], kind="scale", x=x, y=y, by=by, nodes=(node, readers[0]))
    raise NoMatch("it is no product with one number per channel")


_FINDERS = {"ReduceMean": _pool, "GlobalAveragePool": _pool, "Mul": _scale}


def _image(graph: OnnxGraph, name: str) -> QuantizedTensor:
    if len(graph.shape(name) or ()) != 4:
        raise NoMatch("it is no image")
    return read_activation(graph, name, channels_last=False)


def _axes(graph: OnnxGraph, node: onnx.NodeProto) -> tuple[int, ...]:
    """Sorted axes of a ReduceMean over [N, C, H, W]; an attribute up to opset 17, an input since."""
    axes = attribute(node, "axes", None)
    if axes is None and len(node.input) > 1 and node.input[1]:
        stored = graph.constant(node.input[1])
        axes = None if stored is None else np.ravel(stored).tolist()
    return tuple(sorted(int(axis) % 4 for axis in axes or ()))
