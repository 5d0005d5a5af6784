"""What of a QDQ file stays float beside its layers, and why: every island of floats has a reason."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import onnx_ir as ir

from deploypruner.onnx_graph import made_by, read_graph
from deploypruner.quantize.islands import WEIGHTED
from deploypruner.quantize.placement import Placement, op_types

_PAIR = frozenset({"QuantizeLinear", "DequantizeLinear", "Constant"})
_RECURRENT = frozenset({"DeformConv", "Einsum", "GRU", "LSTM", "RNN"})
_NORMS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"})
_CURVES = frozenset({"Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Mish", "Sigmoid", "Swish", "Tanh"})


def float_operations(path: Path, placement: Placement) -> list[dict[str, object]]:
    """Operators of a QDQ file that compute floats, layers apart, each with its count and the reason.

    Args:
        path: The file, as `write_qdq` leaves it.
        placement: Of its pairs.

    Returns:
        `operation`, `count` and `reason`, the most frequent first.
    """
    graph = read_graph(onnx.load(path)).graph
    types = set(op_types(placement))
    found = Counter(
        (node.op_type, _reason(node, types))
        for node in graph
        if node.op_type not in _PAIR | WEIGHTED and _gives_floats(node) and not _on_integers(node, types)
    )
    return [{"operation": kind, "count": count, "reason": why} for (kind, why), count in found.most_common()]


def _gives_floats(node: ir.Node) -> bool:
    """Sizes and indices are no island."""
    return any(value.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16) for value in node.outputs)


def _computed(node: ir.Node) -> list[ir.Value]:
    """The floats that a node reads and nobody stored."""
    values = [value for value in node.inputs if value is not None and not value.is_initializer()]
    return [value for value in values if value.dtype in (None, ir.DataType.FLOAT, ir.DataType.FLOAT16)]


def _on_integers(node: ir.Node, types: set[str]) -> bool:
    read = _computed(node)
    return bool(read) and node.op_type in types and all(made_by(value, "DequantizeLinear") for value in read)


def _reason(node: ir.Node, types: set[str]) -> str:
    if node.op_type in _RECURRENT:
        return "neither runtime computes it in int8 here"
    if node.op_type == "Softmax":
        return "a softmax is computed in float; between int8 products OpenVINO computes it inside their operation"
    if node.op_type in _NORMS:
        return "a norm is computed in float; OpenVINO rounds its result in the same operation"
    if node.op_type in _CURVES:
        return "neither runtime has it in int8; it is fused with the layer before it where the runtime can"
    if node.op_type in ("Add", "Mul", "Sub", "Div") and len(_computed(node)) < 2:
        return "a stored operand, which u8 would round: it is fused with what stands beside it"
    if node.op_type == "Add":
        return "what reads or writes this sum is float"
    if node.op_type == "Mul":
        return "a gate or an activation, which is fused in float"
    if node.op_type in types:
        return "no int8 layer reads what it gives, or what it reads is float"
    return "no int8 kernel is known for it"
