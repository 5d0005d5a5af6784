"""Which layers of a QDQ graph the sparse kernels can compute, and why they cannot compute the others."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.onnx_file import layer_called
from deploypruner.onnx_graph import made_by, operand, optional, sizes
from deploypruner.sparse.epilogue import Tail, follow
from deploypruner.sparse.gates import find_gates
from deploypruner.sparse.layer import Geometry, Layer, Operation, QuantizedTensor, Weighted
from deploypruner.sparse.linear import LinearLayer, follow_float, is_vector
from deploypruner.sparse.qdq import NoMatch, Weights, read_activation, read_bias, read_weights

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# Steps of the output that rounding the bias to a whole accumulator step may cost.
_BIAS_ERROR = 0.25
_INT32 = 2**31 - 1
# Accumulator steps of the bias of a channel without weights, whose scale is free.
_FREE_BIAS = 2**14


@dataclass(frozen=True)
class MatchedOperations:
    """Operations in the graph's order.

    Args:
        layers: Those the kernels can compute, gates included.
        refused: Name of each other layer with weights -> why not.
    """

    layers: tuple[Operation, ...]
    refused: dict[str, str]


def match(graph: ir.Graph) -> MatchedOperations:
    """Look at every convolution, matrix product with stored weights, and squeeze and excitation.

    Args:
        graph: The QDQ graph.
    """
    layers: list[Weighted] = []
    refused: dict[str, str] = {}
    taken: set[ir.Value] = set()
    # Backwards: an addition of two convolutions belongs to the later one.
    for node in reversed([node for node in graph if node.op_type in WEIGHTED]):
        name = _name(node)
        while name in refused or any(name == layer.name for layer in layers):
            name += "'"
        try:
            layer = _layer(node, name, taken=taken)
        except NoMatch as reason:
            refused[name] = str(reason)
            continue
        layers.append(layer)
        taken |= {passed.outputs[0] for passed in layer.nodes if passed.op_type == "Add"}
    place = {node: index for index, node in enumerate(graph)}
    found = sorted((*layers, *find_gates(graph)), key=lambda operation: place[operation.nodes[0]])
    return MatchedOperations(tuple(found), dict(reversed(refused.items())))


def _layer(node: ir.Node, name: str, *, taken: Collection[ir.Value]) -> Weighted:
    linear = node.op_type in ("Gemm", "MatMul")
    if node.op_type == "ConvTranspose":
        raise NoMatch("it is a transposed convolution")
    x = read_activation(operand(node, 0), channels_last=linear)
    weights, bias = _linear(node) if linear else _conv(node)
    geometry = Geometry() if linear else _geometry(node, weights, x)
    outputs, per_group = weights.values.shape[:2]
    if per_group * geometry.group != x.channels:
        raise NoMatch(f"its weight takes {per_group * geometry.group} channels, its input has {x.channels}")
    if is_vector(node, x) and weights.values.shape[2:] == (1, 1) and not any(geometry.pads) and geometry.group == 1:
        return _vector(node, name, x, weights, bias)
    tail = follow(node, channels_last=linear, taken=taken)
    assert tail.y is not None, "a tail that is returned ends in a quantization"
    if tail.bias is not None:
        bias = bias + read_bias(tail.bias, outputs)
    if tail.y.channels != outputs:
        raise NoMatch(f"its weight gives {outputs} channels, its output has {tail.y.channels}")
    scale, words = _steps(weights, bias, x, tail.y)
    low, high = _bounds(tail, tail.y)
    depthwise = geometry.group == x.channels == outputs and outputs > 1
    return Layer(
        name=name,
        kind="linear" if linear else "depthwise" if depthwise else "conv",
        x=x,
        y=tail.y,
        geometry=geometry,
        weights=weights.values,
        scale=scale,
        bias=words,
        low=low,
        high=high,
        swish=tail.swish,
        residual=tail.residual,
        skipped=tail.skipped,
        nodes=tail.nodes,
    )


def _vector(node: ir.Node, name: str, x: QuantizedTensor, weights: Weights, bias: NDArray[np.float64]) -> LinearLayer:
    tail, said = follow_float(node)
    if tail.bias is not None:
        bias = bias + read_bias(tail.bias, len(weights.values))
    scale, words = _words(weights, bias, x, spare=x.scale)
    return LinearLayer(
        name=name,
        kind="conv" if node.op_type == "Conv" else "linear",
        x=x,
        weights=weights.values,
        scale=scale.astype(np.float32),
        bias=words,
        restored=str(operand(node, 0).name),
        result=str(tail.end.name),
        nodes=tail.nodes,
        **said,
    )


def _conv(node: ir.Node) -> tuple[Weights, NDArray[np.float64]]:
    dims, shape, bias = len(sizes(operand(node, 0)) or ()), sizes(operand(node, 1)), optional(node, 2)
    if dims != 4:
        raise NoMatch(f"it is a {dims - 2}-D convolution" if dims > 2 else "its input's sizes are open")
    if shape is None or shape[0] is None:
        raise NoMatch("the sizes of its weight are open")
    weights = read_weights(operand(node, 1), axis=0, channels=shape[0])
    return weights, np.zeros(shape[0]) if bias is None else read_bias(bias, shape[0])


def _linear(node: ir.Node) -> tuple[Weights, NDArray[np.float64]]:
    """A Gemm or MatMul as a 1x1 convolution: weights [O, I, 1, 1]."""
    shape, bias, said = sizes(operand(node, 1)), optional(node, 2), node.attributes
    if shape is None or len(shape) != 2 or None in shape:
        raise NoMatch("it multiplies by more than one matrix" if shape else "the sizes of its weight are open")
    if (said.get_float("alpha", 1.0), said.get_float("beta", 1.0), said.get_int("transA", 0)) != (1.0, 1.0, 0):
        raise NoMatch("it is a matrix product with factors or a transposed input")
    transposed = bool(said.get_int("transB", 0))
    axis = 0 if transposed else 1
    channels = int(shape[axis] or 0)
    found = read_weights(operand(node, 1), axis=axis, channels=channels)
    values = np.ascontiguousarray(found.values if transposed else found.values.T)[:, :, None, None]
    weights = Weights(values, found.scale, found.constant)
    return weights, np.zeros(channels) if bias is None else read_bias(bias, channels)


def _geometry(node: ir.Node, weights: Weights, x: QuantizedTensor) -> Geometry:
    kernel = weights.values.shape[2:]
    strides = node.attributes.get_ints("strides", [1, 1])
    dilations = node.attributes.get_ints("dilations", [1, 1])
    pads = node.attributes.get_ints("pads", [0, 0, 0, 0])
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = _same(x.size, kernel, (strides, dilations), upper=mode == "SAME_UPPER")
    elif mode == "VALID":
        pads = [0, 0, 0, 0]
    if min(pads) < 0:
        raise NoMatch("it has negative padding")
    return Geometry(
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        group=node.attributes.get_int("group", 1),
    )


def _same(size: tuple[int, int], kernel: Any, steps: tuple[Any, Any], *, upper: bool) -> list[int]:
    """Padding that makes the output ceil(size / stride), in ONNX's order; an odd pixel goes to one end."""
    before, after = [], []
    for length, taps, stride, dilation in zip(size, kernel, *steps, strict=True):
        total = max(0, (-(-length // stride) - 1) * stride + (taps - 1) * dilation + 1 - length)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return before + after


def _steps(
    weights: Weights, bias: NDArray[np.float64], x: QuantizedTensor, y: QuantizedTensor
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Scale and bias of every output channel, as the formula in kernels.h has them."""
    step, words = _words(weights, bias, x, spare=y.scale, tolerance=_BIAS_ERROR * y.scale)
    return (step / y.scale).astype(np.float32), words


def _words(
    weights: Weights, bias: NDArray[np.float64], x: QuantizedTensor, *, spare: float, tolerance: float = np.inf
) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Real numbers per accumulator step of every output channel, `spare` for one of zeros; and its bias in steps."""
    by_row = weights.values.reshape(len(weights.values), -1).astype(np.int64)
    empty = ~by_row.any(axis=1)
    step = x.scale * weights.scale
    # A quantizer may have given a channel without weights any scale, in which its bias need not be a number of steps.
    step = np.where(empty, np.where(bias == 0, spare, np.abs(bias) / _FREE_BIAS), step)
    words = np.rint(bias / step)
    error = float(np.abs(bias - words * step).max(initial=0))
    if error > tolerance:
        raise NoMatch(f"rounding its bias would cost {error / tolerance * _BIAS_ERROR:.1f} steps of the output")
    words -= x.zero_point * by_row.sum(axis=1)
    if (np.abs(words) + 255 * np.abs(by_row).sum(axis=1)).max(initial=0) > _INT32:
        raise NoMatch("its sums do not fit into 32 bits")
    return step, words.astype(np.int32)


def _bounds(tail: Tail, y: QuantizedTensor) -> tuple[int, int]:
    """Relu and clip in steps of the output."""
    least, most = (np.rint(bound / y.scale) + y.zero_point for bound in (tail.least, tail.most))
    return int(np.clip(least, 0, 255)), int(np.clip(most, 0, 255))


def _name(node: ir.Node) -> str:
    """What the user calls a layer: its weight's name without what quantizers and modules append."""
    weight = operand(node, 1)
    for _ in range(2):  # behind a pair, or half a pair
        maker = made_by(weight, "DequantizeLinear", "QuantizeLinear")
        weight = weight if maker is None else operand(maker, 0)
    return layer_called(str(weight.name).removesuffix("_quantized")) or str(node.name)
