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

Placement "sparse" is "openvino" with a pair more where squeeze and excitation, or the mean before a classifier,
reads an image that a swish left in float: our sparse kernels compute the whole block only if it is in u8. OpenVINO
alone loses 1 to 2 % by it (efficientnet_b0, mobilenet_v3_large), so it is taken where weights are zero.

Attention is one operation in OpenVINO, products and softmax together, and in int8 if q, k and v are signed numbers
with zero point 0 and the softmax unsigned: ViT-Tiny took 12.8 ms with it in float and 10.9 in int8 (one thread of a
Zen 4). With zero points OpenVINO computes it in float behind conversions. ONNX Runtime gains nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import onnx_ir as ir

from deploypruner.onnx_graph import constant, made_by, operand, remove_unused, take_over
from deploypruner.quantize.attention import attention_of
from deploypruner.quantize.islands import WEIGHTED, serving, unread_sums

Placement = Literal["openvino", "onnxruntime", "sparse"]

OWN_PLACEMENT: dict[str, Placement] = {"onnxruntime": "onnxruntime", "openvino-bf16": "openvino"}
"""Runtimes that may get a file of their own, and where its pairs stand: whose kernels want them elsewhere, or whose
float layers take another time, so that other layers had better be float."""

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
    "sparse": (*_COMPUTED, "Mul", "ReduceMean", *_MOVED),
}
_RESHAPED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})


def placement_in(runtime: str) -> Placement:
    """Of the dense model and of candidates where they are timed in one runtime: each at its best."""
    return OWN_PLACEMENT.get(runtime, "openvino")


def op_types(placement: Placement) -> tuple[str, ...]:
    """Operators whose inputs and outputs get pairs."""
    return _PLACED[placement]


def int8_nodes(
    graph: ir.Graph, placement: Placement, keep_float: Collection[str] = (), *, attention: bool = True
) -> frozenset[ir.Node]:
    """The nodes of an fp32 graph to quantize: those of `op_types`, except

    1. an addition or multiplication with a constant operand: the bias of a MatMul, a scale. It fuses into its
       neighbour, and in u8 the constant would lose precision;
    2. an addition read by a layer norm: a transformer's residual stream, wide in range and consumed in float;
    3. an operator that only moves values no int8 operator reads. Quantizing the concatenation of class token
       and patches raised DeiT's error in OpenVINO from 2 % to 14 %, while ONNX Runtime stayed at 3 %;
    4. a product without a constant operand, unless it is attention's and not for ONNX Runtime; what scales and masks
       the scores in front of its softmax; and what only moves its operands;
    5. for the sparse kernels, a Mul that does not scale an image that int8 operators read, and a mean that is not
       one over an image, for int8 operators;
    6. what reads a constant without a number, as a concatenation with no channels: OpenVINO refuses its pair;
    7. layers named in `keep_float`, and what serves no other layer than them: see `islands`;
    8. but for ONNX Runtime, a layer that reads a reduction which OpenVINO would compute wrongly with the layer's
       pair fused into it: see `misquantized_in_openvino`.

    Args:
        graph: fp32, sorted.
        placement: For which runtime.
        keep_float: Names of layers.
        attention: Whether attention may be int8: where weights have 8 bits. With 7, because sums would saturate, the
            numbers of two activations would need 7, too.
    """
    types = op_types(placement)
    attending = attention_of(graph)
    products = attending.products if attention and placement != "onnxruntime" else frozenset()
    factors = gate_factors(graph) if placement == "sparse" else {}
    chosen = set[ir.Node]()
    for node in reversed(graph):
        users = [user for value in node.outputs for user in value.consumers()]
        is_read = any(user in chosen and user not in products for user in users)
        if node.op_type not in types or any(map(_is_empty, node.inputs)) or node in attending.scores:
            continue
        if node.op_type in ("Add", "Mul") and (
            any(map(_is_stored, node.inputs)) or any(user.op_type in _NORMS for user in users)
        ):
            continue
        if node.op_type == "Mul" and placement == "sparse" and not (node in factors and is_read):
            continue
        if node.op_type == "ReduceMean" and not (is_read and _is_image_mean(node)):
            continue
        if node.op_type in _MOVED and not is_read:
            continue
        if node.op_type in WEIGHTED and (
            node.name in keep_float or not (node in products or _is_stored(operand(node, 1)))
        ):
            continue
        if node.op_type in WEIGHTED and placement != "onnxruntime" and misquantized_in_openvino(node):
            continue
        chosen.add(node)
    return serving(graph, chosen) if keep_float else frozenset(chosen)


def rounded_tensors(graph: ir.Graph, placements: Sequence[Placement], *, attention: bool) -> frozenset[str]:
    """Names of what nodes that become int8 by one of the placements read and write.

    Args:
        graph: fp32, sorted.
        placements: For which runtimes.
        attention: As for `int8_nodes`.
    """
    nodes = set[ir.Node]().union(*(int8_nodes(graph, placement, attention=attention) for placement in placements))
    return frozenset(
        str(value.name) for node in nodes for value in (*node.inputs, *node.outputs) if value is not None
    )


def misquantized_in_openvino(layer: ir.Node) -> bool:
    """Does a layer read a reduction that OpenVINO computes wrongly once a pair follows it?

    OpenVINO fuses the pair into the reduction, and with it a factor for each channel before it. Seen in 2026.4,
    errors of the layer's outputs against the literal graph: 6 to 36 % behind a maximum of any shape, 23 to 38 %
    behind a mean over tokens, [N, T, C], of what was multiplied by a number per channel alone (a layer norm
    whose shift is zero); none behind means over images, and with an addition after the factor.
    """
    value = layer.inputs[0]
    maker = None if value is None else value.producer()
    while maker is not None and maker.op_type in _RESHAPED:
        value = maker.inputs[0]
        maker = None if value is None else value.producer()
    if maker is None or not maker.op_type.startswith("Reduce"):
        return False
    if maker.op_type != "ReduceMean":
        return True
    reduced = operand(maker, 0)
    before = reduced.producer()
    scaled = before is not None and (before.op_type in _NORMS or before.op_type in ("Mul", "Div"))
    return scaled and (reduced.shape is None or len(reduced.shape) != 4)


def idle_tensors(
    graph: ir.Graph, chosen: Collection[ir.Node], placement: Placement, *, mixed: bool = False
) -> frozenset[str]:
    """Names of tensors that a weighted operator writes and no int8 operator reads: a pair there only rounds.

    What follows (swish, Gelu, the model's output) computes in float. For ONNX Runtime the pair after a
    convolution counts as used, because without it the convolution itself would run in float.

    Args:
        graph: fp32, in which Relu and Clip still stand. In the QDQ graph they are gone, and the pair
            in their place does the clipping.
        chosen: The nodes that are to be quantized, from `int8_nodes`.
        placement: For which runtime.
        mixed: Do some layers stay float? What additions write for them has no pair either, but for ONNX Runtime.
    """
    weighted = frozenset({"Gemm", "MatMul"}) if placement == "onnxruntime" else WEIGHTED
    factors = gate_factors(graph) if placement == "sparse" else {}
    written = [value for node in graph if node.op_type in weighted for value in node.outputs]
    read = {value for node in chosen for value in node.inputs if value is not factors.get(node)}
    # A mean that is only reshaped has its pair behind that.
    means = [node.outputs[0] for node in chosen if node.op_type == "ReduceMean"]
    reshaped = [mean for mean in means if all(user.op_type in _MOVED for user in mean.consumers())]
    idle = frozenset(str(value.name) for value in (*written, *factors.values()) if value not in read)
    idle |= {str(mean.name) for mean in reshaped}
    idle |= {str(value.name) for node in attention_of(graph).products & set(chosen) for value in _only_moved(node)}
    return idle | unread_sums(graph, chosen) if mixed and placement != "onnxruntime" else idle


def _only_moved(node: ir.Node) -> list[ir.Value]:
    """What a node gives, and that after every move of it, but for the last: one pair behind all moves is enough."""
    found, value = list[ir.Value](), node.outputs[0]
    while (moves := list(value.consumers())) and all(user.op_type in _MOVED for user in moves) and len(moves) == 1:
        found.append(value)
        value = moves[0].outputs[0]
    return found


def _is_image_mean(node: ir.Node) -> bool:
    """Does it average [N, C, H, W] to [N, C, 1, 1] or [N, C]?"""
    image, mean = tuple(operand(node, 0).shape or ()), tuple(node.outputs[0].shape or ())
    return len(image) == 4 and mean in ((*image[:2], 1, 1), image[:2]) and image[2:] != (1, 1)


def gate_factors(graph: ir.Graph) -> dict[ir.Node, ir.Value]:
    """Each Mul that scales an image, [N, C, H, W], by a number per channel -> these numbers, computed.

    Args:
        graph: fp32, with inferred shapes.
    """
    found = {}
    for node in graph:
        if node.op_type != "Mul":
            continue
        operands = operand(node, 0), operand(node, 1)
        for image, factor in (operands, operands[::-1]):
            sizes, ones = tuple(image.shape or ()), tuple(factor.shape or ())
            scales = len(sizes) == 4 and sizes[2:] != (1, 1) and ones == (*sizes[:2], 1, 1)
            if scales and not (image.is_initializer() or factor.is_initializer()):
                found[node] = factor
    return found


def remove_pairs(graph: ir.Graph, tensors: Collection[str]) -> None:
    """Remove, in place, the pairs on `tensors` (names in the fp32 graph) and the scales only they used.

    Args:
        graph: QDQ, its nodes sorted.
        tensors: From `idle_tensors`.
    """
    for restore in [node for node in graph if node.op_type == "DequantizeLinear"]:
        quantize = made_by(operand(restore, 0), "QuantizeLinear")
        if quantize is None:
            continue
        source, restored = operand(quantize, 0), restore.outputs[0]
        # On an output of the model the restored tensor has the fp32 graph's name, elsewhere the source.
        if {source.name, restored.name} & set(tensors):
            if source.is_graph_input():  # whose name is the model's
                restored.replace_all_uses_with(source)
            else:
                take_over(restored, source)
    remove_unused(graph)


def read_unrounded(graph: ir.Graph, fp32: ir.Graph, chosen: Collection[ir.Node]) -> None:
    """Let what stays float read the float values themselves, in place, where what makes them stays float as well.

    The quantizer lets everything read a pair that stands for some other reader.

    Args:
        graph: QDQ.
        fp32: It was made from.
        chosen: Nodes of `fp32` that were quantized.
    """
    int8 = {node.name for node in chosen}
    makers = {value.name: node for node in fp32 for value in node.outputs}
    for restore in [node for node in graph if node.op_type == "DequantizeLinear"]:
        quantize = made_by(operand(restore, 0), "QuantizeLinear")
        source = None if quantize is None else operand(quantize, 0)
        maker = None if source is None else source.producer()
        # An activation that became part of a pair left its name to what it read.
        if source is None or maker is None or maker.name in int8 or maker.name != makers[source.name].name:
            continue
        for reader, place in list(restore.outputs[0].uses()):
            if reader.name not in int8:
                reader.replace_input_with(place, source)


def _is_stored(value: ir.Value | None) -> bool:
    return value is not None and (value.is_initializer() or made_by(value, "Constant") is not None)


def _is_empty(value: ir.Value | None) -> bool:
    """Is it a constant without a number?"""
    stored = None if value is None else constant(value)
    return stored is not None and stored.size == 0
