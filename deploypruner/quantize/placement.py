"""Where quantize/dequantize (QDQ) pairs stand in the graph; placement decides speed.

Measured at batch 1, 224 x 224, one thread of a Xeon with AVX-512 VNNI shared with other work, milliseconds:

    network              runtime        fp32   placement "openvino"   placement "onnxruntime"
    mobilenet_v3_large   OpenVINO       10.8    6.4                    8.4
                         ONNX Runtime    9.4   21.2                   11.2
    efficientnet_b0      OpenVINO       20.7   14.0                   29.7
                         ONNX Runtime   17.5   47.0                   20.9
    mobilenet_v2         OpenVINO       10.9    5.3                    5.4
                         ONNX Runtime   11.1    6.1                    6.1
    resnet18             OpenVINO       32.4   10.2                   10.3
                         ONNX Runtime   33.7   12.9                   12.9

Swish and hard-swish run in float in both runtimes. OpenVINO fuses them into the convolution before them, unless
a pair stands between; ONNX Runtime has no such fusion and computes the convolution in int8 only if one does.
Residual additions keep their pairs in both: OpenVINO fuses them either way, ONNX Runtime needs them.

Placement "sparse" is "openvino" with a pair more where squeeze and excitation reads an image that a swish left in
float: our sparse kernels compute the whole block only if it is in u8. OpenVINO alone loses 1 to 2 % by it
(efficientnet_b0, mobilenet_v3_large), so it is taken where weights are zero.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

import onnx

from deploypruner.onnx_file import reads, rename

Placement = Literal["openvino", "onnxruntime", "sparse"]

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# What int8 kernels compute, then what only moves or selects values and so passes int8 through.
_COMPUTED = (*sorted(WEIGHTED), "Add", "Relu", "Clip")
_MOVED = (
    *("AveragePool", "Concat", "Flatten", "GlobalAveragePool", "MaxPool", "Pad", "Reshape", "Resize"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
)
# ONNX Runtime has int8 kernels for swish spelt as x * sigmoid(x); OpenVINO is faster with both in float.
_PLACED = {
    "openvino": (*_COMPUTED, *_MOVED),
    "onnxruntime": (*_COMPUTED, "Mul", "Sigmoid", *_MOVED),
    "sparse": (*_COMPUTED, "Mul", *_MOVED),
}
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def op_types(placement: Placement) -> tuple[str, ...]:
    """Operators whose inputs and outputs get pairs."""
    return _PLACED[placement]


def int8_nodes(model: onnx.ModelProto, placement: Placement) -> frozenset[str]:
    """Names of the nodes of an fp32 graph to quantize: those of `op_types`, except

    1. an addition or multiplication with a constant operand: the bias of a MatMul, a scale. It fuses into its
       neighbour, and in u8 the constant would lose precision;
    2. an addition read by a layer norm: a transformer's residual stream, wide in range and consumed in float;
    3. an operator that only moves values no int8 operator reads. Quantizing the concatenation of class token
       and patches raised DeiT's error in OpenVINO from 2 % to 14 %, while ONNX Runtime stayed at 3 %;
    4. a product without a constant operand: attention, which both runtimes fuse in float;
    5. for the sparse kernels, a Mul that does not scale an image that int8 operators read;
    6. what reads a constant without a number, as a concatenation with no channels: OpenVINO refuses its pair.
    """
    types = op_types(placement)
    constants = {tensor.name for tensor in model.graph.initializer}
    constants |= {name for node in model.graph.node if node.op_type == "Constant" for name in node.output}
    empty = {tensor.name for tensor in model.graph.initializer if 0 in tensor.dims}
    normed = {name for node in model.graph.node if node.op_type in _NORMS for name in node.input}
    factors = gate_factors(model) if placement == "sparse" else {}
    chosen, read = set(), set[str]()
    for node in reversed(model.graph.node):
        if node.op_type not in types or empty & set(node.input):
            continue
        if node.op_type in ("Add", "Mul") and (constants & set(node.input) or normed & set(node.output)):
            continue
        if node.op_type == "Mul" and placement == "sparse" and not (node.name in factors and read & set(node.output)):
            continue
        if node.op_type in _MOVED and not read & set(node.output):
            continue
        if node.op_type in WEIGHTED and node.input[1] not in constants:
            continue
        chosen.add(node.name)
        read |= set(node.input)
    return frozenset(chosen)


def idle_tensors(model: onnx.ModelProto, chosen: Collection[str], placement: Placement) -> frozenset[str]:
    """Names of tensors that a weighted operator writes and no int8 operator reads: a pair there only rounds.

    What follows (swish, Gelu, the model's output) computes in float. For ONNX Runtime the pair after a
    convolution counts as used, because without it the convolution itself would run in float.

    Args:
        model: fp32 graph, in which Relu and Clip still stand. In the QDQ graph they are gone, and the pair
            in their place does the clipping.
        chosen: Names of the nodes that are to be quantized, from `int8_nodes`.
        placement: For which runtime.
    """
    weighted = frozenset({"Gemm", "MatMul"}) if placement == "onnxruntime" else WEIGHTED
    factors = gate_factors(model) if placement == "sparse" else {}
    written = {name for node in model.graph.node if node.op_type in weighted for name in node.output}
    read = {
        name
        for node in model.graph.node
        if node.name in chosen
        for name in node.input
        if name != factors.get(node.name)
    }
    return frozenset((written | set(factors.values())) - read)


def gate_factors(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each Mul that scales an image, [N, C, H, W], by a number per channel -> the tensor of these numbers.

    Args:
        model: fp32 graph with inferred shapes.
    """
    shapes = {
        value.name: tuple(dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)
    }
    found = {}
    for node in model.graph.node:
        if node.op_type != "Mul":
            continue
        for image, factor in (tuple(node.input), tuple(reversed(node.input))):
            sizes, ones = shapes.get(image, ()), shapes.get(factor, ())
            if len(sizes) == 4 and sizes[2:] != (1, 1) and ones == (*sizes[:2], 1, 1):
                found[node.name] = factor
    return found


def remove_pairs(model: onnx.ModelProto, tensors: Collection[str]) -> None:
    """Remove, in place, the pairs on `tensors` (names in the fp32 graph) and the scales only they used."""
    graph = model.graph
    producers = {name: node for node in graph.node for name in node.output}
    renamed, dead = {}, []
    for dequantize in graph.node:
        quantize = producers.get(dequantize.input[0]) if dequantize.op_type == "DequantizeLinear" else None
        # On an output of the model the restored tensor has the fp32 graph's name, elsewhere the source.
        if quantize is not None and {quantize.input[0], dequantize.output[0]} & set(tensors):
            renamed[quantize.input[0]] = dequantize.output[0]
            dead += [quantize, dequantize]
    for node in dead:
        graph.node.remove(node)
    rename(graph, renamed)
    outputs = {value.name for value in graph.output}
    for value in graph.value_info:
        if renamed.get(value.name, value.name) not in outputs:
            value.name = renamed.get(value.name, value.name)
    used = {name for node in graph.node for name in reads(node)} | {value.name for value in graph.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
