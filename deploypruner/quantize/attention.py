"""Where a graph computes attention: the products of two activations around a softmax."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from onnxruntime.quantization import QuantType

from deploypruner.onnx_graph import constant, optional

# What may stand between the first product and the softmax (scale and mask), and between that and the second one (the
# guard against rows that are masked altogether).
_BEFORE = frozenset({"Add", "Cast", "Div", "Expand", "Mul", "Reshape", "Sub", "Unsqueeze", "Where"})
_BEHIND = frozenset({"Cast", "Dropout", "Identity", "Reshape", "Where"})


@dataclass(frozen=True)
class Attention:
    """Nodes of a graph that compute attention.

    Args:
        products: Of two activations each: q with k, and the softmax with v.
        scores: What scales and masks between the first product and the softmax.
        signed: Values that products read and no softmax made: q, k and v.
    """

    products: frozenset[ir.Node]
    scores: frozenset[ir.Node]
    signed: frozenset[ir.Value]


def attention_of(graph: ir.Graph) -> Attention:
    """All attention of a graph; a product without a softmax beside it is none."""
    products, scores, softmaxed = set[ir.Node](), set[ir.Node](), set[ir.Value]()
    for softmax in (node for node in graph if node.op_type == "Softmax"):
        before = _back(softmax.inputs[0])
        products |= {node for node in before if _is_product(node)}
        scores |= {node for node in before if not _is_product(node)}
        for value in _on(softmax.outputs[0]):
            softmaxed.add(value)
            products |= {reader for reader in value.consumers() if _is_product(reader)}
    read = {value for node in products for value in node.inputs if value is not None}
    return Attention(frozenset(products), frozenset(scores), frozenset(read - softmaxed))


def signed_operands(graph: ir.Graph, chosen: Collection[ir.Node]) -> dict[str, list[dict[str, Any]]]:
    """Overrides of ONNX Runtime's quantizer: i8 with zero point 0 for q, k and v that only int8 attention reads.

    Args:
        graph: fp32.
        chosen: Its nodes that become int8.
    """
    attending = attention_of(graph)
    int8 = attending.products & set(chosen)
    return {
        str(value.name): [{"quant_type": QuantType.QInt8, "symmetric": True}]
        for value in attending.signed
        if (readers := set(value.consumers()) & set(chosen)) and readers <= int8
    }


def _is_product(node: ir.Node) -> bool:
    return node.op_type == "MatMul" and all(constant(optional(node, place)) is None for place in (0, 1))


def _back(value: ir.Value | None) -> set[ir.Node]:
    """The products that a value comes from, and what lies between; nothing where there is none."""
    maker = None if value is None else value.producer()
    if maker is None:
        return set()
    if _is_product(maker):
        return {maker}
    if maker.op_type not in _BEFORE:
        return set()
    found = set[ir.Node]().union(*map(_back, maker.inputs))
    return found | {maker} if found else found


def _on(value: ir.Value) -> Iterator[ir.Value]:
    """A value, and what it is after steps that keep a softmax's range."""
    yield value
    for reader in value.consumers():
        if reader.op_type in _BEHIND:
            yield from _on(reader.outputs[0])
