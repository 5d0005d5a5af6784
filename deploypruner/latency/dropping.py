"""Residual branches in exported files: where the additions are, and the file without some branches.

An exporter keeps neither the names nor the numbers of the traced nodes, so each branch is marked before the export:
its operand of the addition is multiplied by a number of its own. In the file that number says which addition it is;
the marks are then taken out again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper

from deploypruner.graph import Graph

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


def unmark(model: onnx.ModelProto, count: int) -> list[Addition] | None:
    """Take the marks out of a file again, in place.

    Args:
        model: Export of `marked`.
        count: How many branches were marked.

    Returns:
        The addition of each branch; None where one is not to be found, the file being useless then.
    """
    if any(a.type == onnx.AttributeProto.GRAPH for node in model.graph.node for a in node.attribute):
        return None  # who reads what inside is not to be seen from here
    constants = dict(_scalars(model))
    found: dict[int, Addition] = {}
    marks = []
    for node in model.graph.node:
        scale = [constants[name] for name in node.input if name in constants]
        number = (scale[0] - 1) / _STEP - 1 if node.op_type == "Mul" and scale else -1
        if number not in range(count):
            continue
        users = [user for user in model.graph.node if node.output[0] in user.input]
        operand = next(name for name in node.input if name not in constants)
        if number in found or len(users) != 1 or users[0].op_type != "Add" or not users[0].name:
            return None
        place = list(users[0].input).index(node.output[0])
        users[0].input[place] = operand
        found[int(number)] = Addition(users[0].name, 1 - place)
        marks.append(node)
    if len(found) < count or len({addition.node for addition in found.values()}) < count:
        return None
    for node in marks:
        model.graph.node.remove(node)
    _remove_unused(model)
    return [found[number] for number in range(count)]


def drop(model: onnx.ModelProto, additions: Iterable[Addition]) -> None:
    """Leave branches out of a file, in place: what is left looks as if it had been exported, or quantized, without.

    Args:
        model: With named nodes.
        additions: Of the branches that go.
    """
    wires = _Wires(model)
    nodes = {node.name: node for node in model.graph.node}
    for addition in additions:
        node = nodes[addition.node]
        wires.replace(node.output[0], node.input[addition.shortcut])
    _remove_unused(model)


class _Wires:
    """Who makes and who reads each value of a file."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._maker = {name: node for node in model.graph.node for name in node.output if name}
        self._readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in dict.fromkeys(node.input):
                self._readers.setdefault(name, []).append(node)

    def replace(self, old: str, new: str) -> None:
        """Let everything that read `old` read `new`, and leave out what has nothing to do after that."""
        if any(value.name == old for value in self._model.graph.output):
            self._maker[old].output[list(self._maker[old].output).index(old)] = f"{old}_gone"
            self._model.graph.node.append(onnx.helper.make_node("Identity", [new], [old], name=f"{old}_identity"))
        readers = self._readers.pop(old, [])
        for node in readers:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new
        others = self._readers.setdefault(new, [])
        others += [node for node in readers if node not in others]
        for node in readers:
            self._leave_out(node, new)

    def _leave_out(self, node: onnx.NodeProto, value: str) -> None:
        """Leave out an activation of what is activated already, and a second rounding of what is rounded already."""
        if node.op_type in _ACTIVATIONS and node.input[0] == value:
            before = self._unrounded(value)
            if before is not None and self._same(before, node):
                self.replace(node.output[0], value)
        elif node.op_type == "QuantizeLinear" and node.input[0] == value:
            restored = self._restored(value, node)
            if restored:
                self._share_scale(node, self._maker[restored])
                for reader in list(self._readers.get(node.output[0], [])):
                    self.replace(reader.output[0], restored)

    def _restored(self, value: str, but: onnx.NodeProto) -> str:
        """The rounded form of a value without the pair that begins at `but`, "" where there is none."""
        maker = self._maker.get(value)
        if maker is not None and maker.op_type == "DequantizeLinear":
            return value
        for other in self._readers[value]:
            if other.op_type == "QuantizeLinear" and other is not but:
                for reader in self._readers.get(other.output[0], []):
                    return reader.output[0]
        return ""

    def _share_scale(self, gone: onnx.NodeProto, stays: onnx.NodeProto) -> None:
        """Give what has the scale of one pair that of another: a slice of what is rounded is not rounded anew."""
        before = self._numbers(gone, 1)
        for node in self._model.graph.node:
            if node.op_type in _ROUNDING and self._numbers(node, 1) == before:
                for place in range(1, len(node.input)):
                    tensor, name = self._constants[stays.input[place]], node.input[place]
                    self._constants[name].CopyFrom(tensor)
                    self._constants[name].name = name

    def _numbers(self, node: onnx.NodeProto, first: int) -> list[object]:
        """Values of a node's constant operands from number `first` on; None where one is not constant."""
        held = [self._constants.get(name) for name in list(node.input)[first:]]
        return [None if tensor is None else numpy_helper.to_array(tensor).tolist() for tensor in held]

    def _unrounded(self, value: str) -> onnx.NodeProto | None:
        """What made a value, looking through a pair of quantize and dequantize."""
        node = self._maker.get(value)
        while node is not None and node.op_type in _ROUNDING:
            node = self._maker.get(node.input[0])
        return node

    def _same(self, one: onnx.NodeProto, other: onnx.NodeProto) -> bool:
        """Do two activations do the same to what they read?"""
        if one.op_type != other.op_type or list(one.attribute) != list(other.attribute):
            return False
        return self._numbers(one, 1) == self._numbers(other, 1)


def _scalars(model: onnx.ModelProto) -> Iterator[tuple[str, float]]:
    """Name and value of every constant of a single number."""
    held = [(tensor.name, tensor) for tensor in model.graph.initializer]
    inside = [node for node in model.graph.node if node.op_type == "Constant"]
    held += [(n.output[0], a.t) for n in inside for a in n.attribute if a.type == onnx.AttributeProto.TENSOR]
    for name, tensor in held:
        array = numpy_helper.to_array(tensor)
        if array.size == 1 and array.dtype.kind == "f":
            yield name, float(array.reshape(-1)[0])


def _remove_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that no output needs, in place."""
    maker: Mapping[str, onnx.NodeProto] = {name: node for node in model.graph.node for name in node.output}
    needed: set[str] = set()
    waiting = [value.name for value in model.graph.output]
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        if name in maker:
            waiting += maker[name].input
    kept = [node for node in model.graph.node if any(name in needed for name in node.output)]
    held = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    if len(kept) < len(model.graph.node):
        del model.graph.node[:]
        model.graph.node.extend(kept)
    if len(held) < len(model.graph.initializer):
        del model.graph.initializer[:]
        model.graph.initializer.extend(held)
