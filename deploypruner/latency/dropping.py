"""Residual branches in exported files: where the additions are, and the file without some branches.

An exporter keeps neither the names nor the numbers of the traced nodes, so each branch is marked before the export:
its operand of the addition is multiplied by a number of its own. In the file that number says which addition it is;
the marks are then taken out again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch

from deploypruner.graph import Graph
from deploypruner.onnx_graph import constant, made_by, operand, remove_unused, to_model

_ROUNDING = ("QuantizeLinear", "DequantizeLinear")
_ACTIVATIONS = ("Relu", "Clip")
# No model multiplies by 1 + k / 8192 for a reason; in float32 all of them are exact.
_STEP = 1 / 8192


@dataclass(frozen=True)
class Addition:
    """The addition of one branch in a file.

    Args:
        node: Its name.
        shortcut: Which of its operands stays when the branch goes.
    """

    node: str
    shortcut: int


def marked(graph: Graph) -> torch.nn.Module:
    """A copy of the dense module that multiplies what branch number k adds by `1 + (k + 1) / 8192`."""
    module = copy.deepcopy(graph.module)
    assert isinstance(module, torch.fx.GraphModule), "branches are found in a graph"
    nodes = {node.name: node for node in module.graph.nodes}
    for number, branch in enumerate(graph.branches):
        residual = graph.residuals[branch.id]
        add, operand = nodes[residual.add.name], nodes[residual.branch.name]
        with module.graph.inserting_before(add):
            mark = module.graph.call_function(torch.ops.aten.mul.Tensor, (operand, 1 + (number + 1) * _STEP))
        mark.meta.update(operand.meta)
        add.replace_input_with(operand, mark)
    module.recompile()
    return module


def unmark(model: onnx.ModelProto, count: int) -> tuple[onnx.ModelProto, list[Addition]] | None:
    """Take the marks out of a file again.

    Args:
        model: Export of `marked`, its nodes sorted.
        count: How many branches were marked.

    Returns:
        The file without marks, and the addition of each branch; None where one is not to be found.
    """
    read = ir.from_proto(model)
    found: dict[int, Addition] = {}
    for node in read.graph:
        number, source = _mark(node)
        if source is None or number not in range(count):
            continue
        users = node.outputs[0].consumers()
        if number in found or len(users) != 1 or users[0].op_type != "Add" or not users[0].name:
            return None
        place = users[0].inputs.index(node.outputs[0])
        users[0].replace_input_with(place, source)
        found[int(number)] = Addition(users[0].name, 1 - place)
    if len(found) < count or len({addition.node for addition in found.values()}) < count:
        return None
    remove_unused(read.graph)
    return to_model(read), [found[number] for number in range(count)]


def _mark(node: ir.Node) -> tuple[float, ir.Value | None]:
    """The number of a branch if a node is its mark, any other if not, and what it multiplies."""
    if node.op_type == "Mul":
        for place in (0, 1):
            factor = constant(node.inputs[place])
            if factor is not None and factor.size == 1 and factor.dtype.kind == "f":
                return (float(factor.reshape(-1)[0]) - 1) / _STEP - 1, node.inputs[1 - place]
    return -1, None


def drop(model: onnx.ModelProto, additions: Iterable[Addition]) -> onnx.ModelProto:
    """The file without some branches: what is left looks as if it had been exported, or quantized, without.

    Args:
        model: With named and sorted nodes.
        additions: Of the branches that go.
    """
    read = ir.from_proto(model)
    nodes = {node.name: node for node in read.graph}
    for addition in additions:
        node = nodes[addition.node]
        _replace(node.outputs[0], operand(node, addition.shortcut))
    remove_unused(read.graph)
    return to_model(read)


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Let everything that read `old` read `new`, and leave out what has nothing to do after that."""
    graph = old.graph
    assert isinstance(graph, ir.Graph), "branches are dropped from a graph"
    if old.is_graph_output():
        kept = ir.val(old.name, type=old.type, shape=old.shape)
        graph.append(ir.node("Identity", [new], outputs=[kept], name=f"{old.name}_identity"))
        graph.outputs[list(graph.outputs).index(old)] = kept
    readers = old.consumers()
    old.replace_all_uses_with(new)
    for node in readers:
        _leave_out(node, new)


def _leave_out(node: ir.Node, value: ir.Value) -> None:
    """Leave out an activation of what is activated already, and a second rounding of what is rounded already."""
    if operand(node, 0) is not value:
        return
    if node.op_type in _ACTIVATIONS:
        before = _unrounded(value)
        if before is not None and _same(before, node):
            _replace(node.outputs[0], value)
    elif node.op_type == "QuantizeLinear":
        restored = _restored(value, node)
        if restored is not None:
            _share_scale(node, restored)
            for reader in node.outputs[0].consumers():
                _replace(reader.outputs[0], restored.outputs[0])


def _restored(value: ir.Value, but: ir.Node) -> ir.Node | None:
    """What gives the rounded form of a value, the pair that begins at `but` left out."""
    restore = made_by(value, "DequantizeLinear")
    if restore is not None:
        return restore
    pairs = [node for node in value.consumers() if node.op_type == "QuantizeLinear" and node is not but]
    return next((reader for pair in pairs for reader in pair.outputs[0].consumers()), None)


def _share_scale(gone: ir.Node, stays: ir.Node) -> None:
    """Give what has the scale of one pair that of another: a slice of what is rounded is not rounded anew."""
    assert isinstance(gone.graph, ir.Graph), "it is not removed yet"
    before = _numbers(gone)
    for node in gone.graph:
        if node.op_type in _ROUNDING and _numbers(node) == before:
            for place in range(1, len(node.inputs)):
                operand(node, place).const_value = ir.tensor(np.asarray(constant(operand(stays, place))))


def _numbers(node: ir.Node) -> list[object]:
    """Values of a node's constant operands but the first; None where one is not constant."""
    held = [constant(value) for value in node.inputs[1:]]
    return [None if values is None else values.tolist() for values in held]


def _unrounded(value: ir.Value) -> ir.Node | None:
    """What made a value, looking through a pair of quantize and dequantize."""
    node = value.producer()
    while node is not None and node.op_type in _ROUNDING:
        node = operand(node, 0).producer()
    return node


def _same(one: ir.Node, other: ir.Node) -> bool:
    """Do two activations do the same to what they read?"""
    said = [{name: attribute.value for name, attribute in node.attributes.items()} for node in (one, other)]
    return one.op_type == other.op_type and said[0] == said[1] and _numbers(one) == _numbers(other)
