"""Which operators stay int8 where some layers do not: those that an int8 layer gives to or reads from.

A pair that no int8 layer needs only rounds, and costs a conversion on each side.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
ACTIVATIONS = frozenset({"Clip", "Relu", "Sigmoid"})
_COMBINED = frozenset({"Add", "Mul"})


def serving(graph: ir.Graph, chosen: Collection[ir.Node]) -> frozenset[ir.Node]:
    """The chosen nodes that still serve an int8 layer.

    1. Every layer among them.
    2. An addition or multiplication that an int8 layer reads, activations and moves between them, or that reads what
       an int8 layer gives, moves between them: the one at the end of a residual branch, not its shortcut.
    3. An activation or a move before one of 1 and 2. Behind an int8 layer an activation stays as well, unless what
       reads it could be int8 and is not: the layer then gives floats, and the activation fuses with it in float.

    Args:
        graph: fp32, sorted.
        chosen: Of its nodes, from `int8_nodes`.
    """
    leads, comes = _leads(graph, chosen), _comes(graph, chosen)
    direct = _comes(graph, [node for node in chosen if node.op_type not in ACTIVATIONS])
    kept = set[ir.Node]()
    for node in reversed(graph):
        if node not in chosen:
            continue
        readers = [reader for value in node.outputs for reader in value.consumers()]
        if node.op_type in WEIGHTED:
            kept.add(node)
        elif node.op_type in _COMBINED:
            if leads & set(node.outputs) or direct & set(node.inputs):
                kept.add(node)
        elif any(reader in kept for reader in readers) or (
            node.op_type in ACTIVATIONS
            and comes & set(node.inputs)
            and not any(reader in chosen or reader.op_type in WEIGHTED for reader in readers)
        ):
            kept.add(node)
    return frozenset(kept)


def unread_sums(graph: ir.Graph, chosen: Collection[ir.Node]) -> frozenset[str]:
    """Names of what additions and multiplications write for float layers alone: OpenVINO fuses them in float."""
    return frozenset(
        str(value.name)
        for node in chosen
        if node.op_type in _COMBINED
        for value in node.outputs
        if not any(reader in chosen for reader in value.consumers())
    )


def _leads(graph: ir.Graph, chosen: Collection[ir.Node]) -> set[ir.Value | None]:
    """Values that an int8 layer reads, as they are or after activations and moves."""
    found = set[ir.Value | None]()
    for node in reversed(graph):
        if node not in chosen:
            continue
        if node.op_type in WEIGHTED:
            found.add(node.inputs[0])
        elif node.op_type not in _COMBINED and found & set(node.outputs):
            found |= set(node.inputs)
    return found


def _comes(graph: ir.Graph, chosen: Collection[ir.Node]) -> set[ir.Value | None]:
    """Values that an int8 layer writes, as they are or after activations and moves."""
    found = set[ir.Value | None]()
    for node in graph:
        if node in chosen and (
            node.op_type in WEIGHTED or (node.op_type not in _COMBINED and found & set(node.inputs))
        ):
            found |= set(node.outputs)
    return found
