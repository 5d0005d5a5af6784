"""Quantized tensors of a QDQ graph, read with all their conditions; what does not fit is said, never guessed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.onnx_graph import Array, constant, made_by, operand, optional, readers, scalar, sizes
from deploypruner.sparse.layer import QuantizedTensor

_ZERO_POINTS = {np.dtype(np.uint8): 0, np.dtype(np.int8): 128}


class NoMatch(Exception):
    """Why a layer cannot be computed by the sparse kernels, in words for the report."""


@dataclass(frozen=True)
class Weights:
    """Integer weights and their steps.

    Args:
        values: int8, zero point taken off.
        scale: float64 [channels out].
        constant: Name of the stored tensor, float or integer.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float64]
    constant: str


def read_activation(value: ir.Value, *, channels_last: bool) -> QuantizedTensor:
    """The quantized tensor that a float one was restored from.

    Raises:
        NoMatch: It was not restored from a u8 or s8 tensor of one scale, or its sizes are open.
    """
    restore = made_by(value, "DequantizeLinear")
    if restore is None:
        raise NoMatch("its input is not quantized")
    quantize = made_by(operand(restore, 0), "QuantizeLinear")
    if quantize is None:
        raise NoMatch("its input is not quantized inside the graph")
    return read_quantize(quantize, channels_last=channels_last)


def read_quantize(quantize: ir.Node, *, channels_last: bool) -> QuantizedTensor:
    """What a QuantizeLinear node gives, every DequantizeLinear that reads it included.

    Raises:
        NoMatch: As `read_activation`; or the pair's two halves disagree.
    """
    scale, point = _step(quantize)
    if scale.size != 1:
        raise NoMatch("an activation is quantized per channel")
    if point.dtype not in _ZERO_POINTS:
        raise NoMatch(f"an activation is quantized to {point.dtype.name}")
    source, given = operand(quantize, 0), quantize.outputs[0]
    for reader in readers(given):
        if reader.op_type != "DequantizeLinear":
            raise NoMatch(f"its quantized form is read by {reader.op_type}")
        other, other_point = _step(reader)
        if other.size != 1 or scalar(other) != scalar(scale) or scalar(other_point) != scalar(point):
            raise NoMatch("an activation is restored with another scale than it was quantized with")
    shape = sizes(source) or sizes(given)
    if shape is None or len(shape) < 2 or None in shape[1:]:
        raise NoMatch("the sizes of an activation are open")
    step = scalar(scale)
    if step is None or not np.isfinite(step) or step <= 0:
        raise NoMatch(f"an activation has scale {step}")
    return QuantizedTensor(
        name=str(given.name),
        source=str(source.name),
        scale=step,
        zero_point=int(point.reshape(-1)[0]) + _ZERO_POINTS[point.dtype],
        shape=tuple(int(size) for size in shape[1:] if size is not None),
        channels_last=channels_last,
    )


def read_weights(value: ir.Value, *, axis: int, channels: int) -> Weights:
    """Stored weights behind a float tensor: integers, or floats that the graph itself quantizes.

    Args:
        value: What the layer reads.
        axis: Of the output channels.
        channels: Output channels.

    Raises:
        NoMatch: They are computed, not quantized, or do not fit into int8 once their zero point is taken off.
    """
    restore = made_by(value, "DequantizeLinear")
    if restore is None:
        raise NoMatch("its weight is computed" if constant(value) is None else "its weight is not quantized")
    scale, point = _step(restore)
    source = operand(restore, 0)
    stored = constant(source)
    if stored is None:
        source, stored = _fold(source, scale, point)
    if stored.dtype not in (np.int8, np.uint8):
        raise NoMatch(f"its weight is quantized to {stored.dtype.name}")
    if scale.size > 1 and (scale.shape != (channels,) or restore.attributes.get_int("axis", 1) % stored.ndim != axis):
        raise NoMatch("its weight is not quantized per tensor or per output channel")
    if restore.attributes.get_int("block_size", 0):
        raise NoMatch("its weight is quantized in blocks")
    shifted = stored.astype(np.int16) - along(point.astype(np.int16), stored.ndim, axis)
    if shifted.min(initial=0) < -128 or shifted.max(initial=0) > 127:
        raise NoMatch("its weight has a zero point, and does not fit into int8 without it")
    steps = np.broadcast_to(scale.astype(np.float64).reshape(-1), (channels,))
    if not (np.isfinite(steps).all() and (steps > 0).all()):
        raise NoMatch("a scale of its weight is not a positive number")
    return Weights(shifted.astype(np.int8), steps, str(source.name))


def read_bias(value: ir.Value, channels: int) -> NDArray[np.float64]:
    """A bias in real numbers, [channels]: stored as float, or as integers with a scale.

    Raises:
        NoMatch: It is computed, or has another size.
    """
    found = constant(value)
    if found is None:
        restore = made_by(value, "DequantizeLinear")
        stored = None if restore is None else constant(operand(restore, 0))
        if restore is None or stored is None:
            raise NoMatch("its bias is computed")
        scale, point = _step(restore)
        found = (stored.astype(np.float64) - point.astype(np.float64)) * scale.astype(np.float64)
    if found.size not in (1, channels):
        raise NoMatch(f"its bias has {found.size} values for {channels} channels")
    return np.broadcast_to(found.astype(np.float64).reshape(-1), (channels,))


def along(values: Array, dims: int, axis: int) -> Array:
    """One value, or one per index of `axis`, in a shape that broadcasts to `dims` dimensions."""
    if values.size == 1:
        return values.reshape(())
    return values.reshape([-1 if d == axis else 1 for d in range(dims)])


def _step(node: ir.Node) -> tuple[Array, Array]:
    """Scale and zero point of a QuantizeLinear or DequantizeLinear."""
    scale, given = constant(operand(node, 1)), optional(node, 2)
    point = np.zeros(1, _stored_type(node)) if given is None else constant(given)
    if scale is None or point is None:
        raise NoMatch("a scale or zero point is computed")
    if scale.dtype != np.float32:
        raise NoMatch(f"a scale is {scale.dtype.name}")
    return scale, point


def _stored_type(node: ir.Node) -> Any:
    """What is stored between a QuantizeLinear without a zero point and a DequantizeLinear: said, or uint8."""
    if node.op_type == "QuantizeLinear":
        named = node.attributes.get_int("output_dtype", 0)
        return ir.DataType(named).numpy() if named else np.uint8
    stored, quantize = constant(operand(node, 0)), made_by(operand(node, 0), "QuantizeLinear")
    if stored is not None:
        return stored.dtype
    return np.uint8 if quantize is None else _step(quantize)[1].dtype


def _fold(value: ir.Value, scale: Array, point: Array) -> tuple[ir.Value, Array]:
    """Weights that the graph quantizes itself: the float ones, and what QuantizeLinear gives."""
    quantize = made_by(value, "QuantizeLinear")
    weights = None if quantize is None else constant(operand(quantize, 0))
    if quantize is None or weights is None:
        raise NoMatch("its weight is computed")
    own_scale, own_point = _step(quantize)
    if not (np.array_equal(own_scale, scale) and np.array_equal(own_point, point)):
        raise NoMatch("its weight is restored with another scale than it was quantized with")
    axis = quantize.attributes.get_int("axis", 1) % weights.ndim
    limits = np.iinfo(point.dtype)
    steps = np.rint(weights / along(scale, weights.ndim, axis)) + along(point, weights.ndim, axis)
    return operand(quantize, 0), np.clip(steps, limits.min, limits.max).astype(point.dtype)
