"""Probe files without exporting each: what changes in the file when the widths do is learnt from a few exports.

Exports of one graph under different plans differ only in numbers: sizes of weights, shapes to reshape to, numbers
of groups. Each of them follows one axis of the graph (`matching`). Once every number is explained, a file for any
other plan is the dense one with its numbers replaced, its weights cut and some of its branches left out, which takes
a tenth of a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.dropping import Addition, drop
from deploypruner.latency.matching import Follows, Matcher
from deploypruner.onnx_file import write_onnx

_INTEGERS = (onnx.AttributeProto.INT, onnx.AttributeProto.INTS)
_Place = tuple[int, ...]


@dataclass(frozen=True)
class Template:
    """A dense ONNX file and what in it follows which axis.

    Args:
        dense: Without weights.
        weights: Of every tensor in `tensors(dense)`.
        sizes: Tensor number -> which of its dimensions follow an axis.
        values: (tensor number, flat index) -> the axis that this integer follows.
        numbers: (node, attribute, index) -> the axis that this integer follows.
        additions: Axis of each branch -> where it is added.
    """

    dense: onnx.ModelProto
    weights: Sequence[NDArray[np.generic]]
    sizes: dict[int, dict[int, Follows]]
    values: dict[tuple[int, int], Follows]
    numbers: dict[_Place, Follows]
    additions: Mapping[int, Addition]

    def write(self, lengths: IntArray, path: Path) -> None:
        """Write the file for a plan under which the axes have these lengths."""
        model = onnx.ModelProto()
        model.CopyFrom(self.dense)
        for number, (tensor, weight) in enumerate(zip(_tensors(model), self.weights, strict=True)):
            name, array = tensor.name, weight
            for axis, follows in self.sizes.get(number, {}).items():
                array = array.take(range(follows.value(lengths)), axis)
            tensor.CopyFrom(numpy_helper.from_array(np.asarray(array, order="C"), name))
        for number, tensor in enumerate(_tensors(model)):
            changed = {i: follows for (t, i), follows in self.values.items() if t == number}
            if changed:
                array = numpy_helper.to_array(tensor).copy()
                for index, follows in changed.items():
                    array.reshape(-1)[index] = follows.value(lengths)
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        for (node, attribute, index), follows in self.numbers.items():
            _set(model.graph.node[node].attribute[attribute], index, follows.value(lengths))
        gone = [addition for axis, addition in self.additions.items() if not lengths[axis]]
        write_onnx(drop(model, gone) if gone else model, path)


def learn(
    files: Sequence[Path], lengths: IntArray, additions: Mapping[int, Addition] | None = None
) -> Template | None:
    """Learn a template from exports of one graph; None where they differ in more than numbers that follow axes.

    Args:
        files: Exports, the dense one first.
        lengths: `[files, axes]`, see `matching.Lengths`.
        additions: Axis of each branch -> where it is added in the dense file.
    """
    models = [_canonical(onnx.load(file)) for file in files]
    inner = any(a.type == onnx.AttributeProto.GRAPH for n in models[0].graph.node for a in n.attribute)
    if inner or len({_structure(model) for model in models}) > 1:
        return None
    matcher = Matcher(lengths)
    listed = [list(_tensors(model)) for model in models]
    sizes: dict[int, dict[int, Follows]] = {}
    values: dict[tuple[int, int], Follows] = {}
    shapes = {node.input[1] for node in models[0].graph.node if node.op_type == "Reshape"}
    for number, tensors in enumerate(zip(*listed, strict=True)):
        if tensors[0].name in shapes:
            explained = _explain_reshape(number, tensors, matcher, values)
        else:
            explained = _explain_tensor(number, tensors, matcher, sizes, values)
        if not explained:
            return None
    numbers = _explain_attributes(models, matcher)
    if numbers is None:
        return None
    weights = [numpy_helper.to_array(tensor) for tensor in listed[0]]
    for tensor in listed[0]:
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    return Template(models[0], weights, sizes, values, numbers, additions or {})


def _canonical(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name values by where they are made and constants by where they are used, in place.

    Exporters number values in passing and merge constants that happen to be equal, so names differ between plans.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    used: list[onnx.TensorProto] = []
    for place, node in enumerate(graph.node):  # first of all: the quantizer does not keep nodes in order
        for index, name in enumerate(node.output):
            if name:
                node.output[index] = names.setdefault(name, f"value_{place}_{index}")
    for place, node in enumerate(graph.node):
        for index, name in enumerate(node.input):
            if name in constants:
                tensor = onnx.TensorProto()
                tensor.CopyFrom(constants[name])
                tensor.name = f"constant_{place}_{index}"
                used.append(tensor)
                node.input[index] = tensor.name
            elif name:
                node.input[index] = names[name]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(used)
    for value in graph.output:
        for size in value.type.tensor_type.shape.dim:
            size.Clear()  # open: the runtime finds out
    return model


def _explain_tensor(
    number: int,
    tensors: Sequence[onnx.TensorProto],
    matcher: Matcher,
    sizes: dict[int, dict[int, Follows]],
    values: dict[tuple[int, int], Follows],
) -> bool:
    """Note what the sizes or integers of one tensor follow; False where something is unexplained."""
    shapes = [tuple(tensor.dims) for tensor in tensors]
    integers = tensors[0].data_type == onnx.TensorProto.INT64
    scalar = not integers and all(prod(shape) == 1 for shape in shapes)  # written as [] or as [1]
    if len(set(shapes)) > 1 and not scalar:
        if integers or len({len(shape) for shape in shapes}) > 1:
            return False  # a list of indices: cutting it would leave wrong ones
        for axis, column in enumerate(zip(*shapes, strict=True)):
            if len(set(column)) > 1:
                follows = matcher.find(column)
                if follows is None:
                    return False
                sizes.setdefault(number, {})[axis] = follows
    elif integers:
        rows = [numpy_helper.to_array(tensor).reshape(-1).tolist() for tensor in tensors]
        for index, column in enumerate(zip(*rows, strict=True)):
            if len(set(column)) > 1:
                follows = matcher.find(column)
                if follows is None:
                    return False
                values[number, index] = follows
    return True


def _explain_reshape(
    number: int, tensors: Sequence[onnx.TensorProto], matcher: Matcher, values: dict[tuple[int, int], Follows]
) -> bool:
    """As `_explain_tensor` for the shape of a Reshape, where -1 is what the rest leaves and stands for any number."""
    rows = [numpy_helper.to_array(tensor).reshape(-1).tolist() for tensor in tensors]
    if len({len(row) for row in rows}) > 1:
        return False
    for index, column in enumerate(zip(*rows, strict=True)):
        if column[0] != -1 and len(set(column)) > 1:
            told = [plan for plan, size in enumerate(column) if size != -1]
            follows = matcher.find([column[plan] for plan in told], told)
            if follows is None or len(told) < 2:
                return False
            values[number, index] = follows
    return True


def _explain_attributes(models: Sequence[onnx.ModelProto], matcher: Matcher) -> dict[_Place, Follows] | None:
    found: dict[_Place, Follows] = {}
    for place, nodes in enumerate(zip(*(model.graph.node for model in models), strict=True)):
        for which, attributes in enumerate(zip(*(node.attribute for node in nodes), strict=True)):
            if attributes[0].type not in _INTEGERS:
                continue
            rows = [_get(attribute) for attribute in attributes]
            if len({len(row) for row in rows}) > 1:
                return None
            for index, column in enumerate(zip(*rows, strict=True)):
                if len(set(column)) > 1:
                    follows = matcher.find(column)
                    if follows is None:
                        return None
                    found[place, which, index] = follows
    return found


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every constant of a file, in order: initializers, then those inside nodes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t


def _structure(model: onnx.ModelProto) -> tuple[object, ...]:
    """What must be equal: everything but numbers."""
    nodes = tuple(
        (n.op_type, tuple(n.input), tuple(n.output), tuple((a.name, a.type) for a in n.attribute))
        for n in model.graph.node
    )
    return nodes, tuple((t.name, t.data_type) for t in _tensors(model))


def _get(attribute: onnx.AttributeProto) -> list[int]:
    return [attribute.i] if attribute.type == onnx.AttributeProto.INT else list(attribute.ints)


def _set(attribute: onnx.AttributeProto, index: int, value: int) -> None:
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i = value
    else:
        attribute.ints[index] = value
