"""What has no weights in C4: squeeze and excitation, a mean over an image and a product with one number per channel.

    x -> ReduceMean | GlobalAveragePool -> any small layers -> s;  x, s -> Mul -> QuantizeLinear

Each half is an operation of its own; what stands between them stays in OpenVINO. So is the mean before a classifier,
and max pooling between two quantizations of one step.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import constant, operand, optional, readers, sizes
from deploypruner.sparse.layer import QUAD, Geometry, Operation, QuantizedTensor
from deploypruner.sparse.qdq import NoMatch, read_activation, read_quantize

_SPATIAL = (2, 3)
# What the sums of an image must fit into, see kernels.h.
_MOST_PIXELS = 2**23


@dataclass(frozen=True, kw_only=True)
class Gate(Operation):
    """Any of them."""

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


@dataclass(frozen=True, kw_only=True)
class MaxPool(Gate):
    """The largest of a window's pixels, which keeps step and zero point.

    Args:
        y: The result.
        geometry: Kernel, strides and pads.
    """

    op_type: ClassVar[str] = "MaxPoolC4"

    y: QuantizedTensor
    geometry: Geometry

    @property
    def macs(self) -> int:
        """See `Operation.macs`."""
        return self.y.channels * self.y.pixels * int(np.prod(self.geometry.kernel))

    @property
    def form(self) -> Hashable:
        """See `Operation.form`."""
        return self.kind, self.x.shape, self.geometry

    def attributes(self) -> dict[str, Any]:
        """See `Operation.attributes`."""
        height, width = self.x.size
        sizes = {"channels": self.x.channels, "height": height, "width": width}
        g = self.geometry
        return sizes | {"kernel_shape": list(g.kernel), "strides": list(g.strides), "pads": list(g.pads)}


def find_gates(graph: ir.Graph) -> Iterator[Gate]:
    """Every mean, scaled activation and max pool that our kernels can compute."""
    for node in graph:
        find = _FINDERS.get(node.op_type)
        if find is not None:
            try:
                yield find(node)
            except NoMatch:  # the report has a line for what has weights only
                continue


def _pool(node: ir.Node) -> Pool:
    x = _image(operand(node, 0))
    keeps = True
    if node.op_type == "ReduceMean":
        if _axes(node) != _SPATIAL:
            raise NoMatch("it is no mean over the image")
        keeps = bool(node.attributes.get_int("keepdims", 1))
    if x.pixels > _MOST_PIXELS:
        raise NoMatch("its image is too large")
    mean = str(node.outputs[0].name)
    return Pool(name=mean, kind="pool", x=x, mean=mean, flat=not keeps, nodes=(node,))


def _scale(node: ir.Node) -> Scale:
    product, found = node.outputs[0], readers(node.outputs[0])
    if product.is_graph_output() or [reader.op_type for reader in found] != ["QuantizeLinear"]:
        raise NoMatch("its product is needed in float")
    y = read_quantize(found[0], channels_last=False)
    if found[0].outputs[0].is_graph_output():
        raise NoMatch("its quantized form is an output of the model")
    factors = operand(node, 0), operand(node, 1)
    for image, by in (factors, factors[::-1]):
        whole = sizes(image)
        if not whole or len(whole) != 4 or sizes(by) != (whole[0], whole[1], 1, 1):
            continue
        if constant(by) is None and whole[1:] == y.shape and (whole[2:] != (1, 1)):
            x, nodes = _image(image), (node, found[0])
            return Scale(name=str(product.name), kind="scale", x=x, y=y, by=str(by.name), nodes=nodes)
    raise NoMatch("it is no product with one number per channel")


def _max_pool(node: ir.Node) -> MaxPool:
    x, said = _image(operand(node, 0)), node.attributes
    result, found = node.outputs[0], readers(node.outputs[0])
    if len(node.outputs) > 1 or result.is_graph_output() or [r.op_type for r in found] != ["QuantizeLinear"]:
        raise NoMatch("its result is needed in float")
    y = read_quantize(found[0], channels_last=False)
    if found[0].outputs[0].is_graph_output():
        raise NoMatch("its quantized form is an output of the model")
    if (y.scale, y.zero_point) != (x.scale, x.zero_point):
        raise NoMatch("its result is quantized with another step")
    kernel, pads = said.get_ints("kernel_shape", [0, 0]), said.get_ints("pads", [0, 0, 0, 0])
    strides, dilations = said.get_ints("strides", [1, 1]), said.get_ints("dilations", [1, 1])
    plain = said.get_string("auto_pad", "NOTSET") == "NOTSET" and not said.get_int("ceil_mode", 0)
    # A padding as large as the kernel would leave windows without a pixel.
    if (
        not plain
        or list(dilations) != [1, 1]
        or min(pads) < 0
        or any(p >= k for p, k in zip(pads, (*kernel, *kernel), strict=True))
    ):
        raise NoMatch("its windows are dilated, or reach beyond the padding")
    geometry = Geometry(
        kernel=(kernel[0], kernel[1]), strides=(strides[0], strides[1]), pads=(pads[0], pads[1], pads[2], pads[3])
    )
    name, nodes = str(result.name), (node, found[0])
    return MaxPool(name=name, kind="max-pool", x=x, y=y, geometry=geometry, nodes=nodes)


_FINDERS = {"ReduceMean": _pool, "GlobalAveragePool": _pool, "Mul": _scale, "MaxPool": _max_pool}


def _image(value: ir.Value) -> QuantizedTensor:
    if len(sizes(value) or ()) != 4:
        raise NoMatch("it is no image")
    return read_activation(value, channels_last=False)


def _axes(node: ir.Node) -> tuple[int, ...]:
    """Sorted axes of a ReduceMean over [N, C, H, W]; an attribute up to opset 17, an input since."""
    axes = node.attributes.get_ints("axes", None)
    if axes is None:
        stored = constant(optional(node, 1))
        axes = [] if stored is None else np.ravel(stored).tolist()
    return tuple(sorted(int(axis) % 4 for axis in axes))
