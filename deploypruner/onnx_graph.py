"""ONNX graphs to walk and to edit: onnx_ir's, in which a value knows who makes it and who reads it.

Files stay `onnx.ModelProto`: `read_graph` and `to_model` go to and fro.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.errors import InputError, said_by
from deploypruner.onnx_file import reads, sort_nodes

Array = NDArray[Any]
Sizes = tuple[int | None, ...]

# The first IR version whose stored tensors are constants unless they are inputs too.
_CONSTANTS = 4


def read_graph(model: onnx.ModelProto) -> ir.Model:
    """A copy of a model with its nodes sorted and shapes inferred; what is stored is constant, in IR version 3, too.

    Raises:
        InputError: The model is not sound ONNX: a missing tensor, a circle, an operator this onnx does not know at
            its opset.
    """
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        raise _unsound(str(error).strip().splitlines()[-1]) from error
    _check_complete(found.graph)
    sort_nodes(found.graph)
    try:
        graph = ir.from_proto(found)
    except ir.serde.SerdeError as error:
        raise _unsound(said_by(_first_cause(error))) from error
    _check_inner(graph.graph)
    for value in [value for value in graph.graph.inputs if value.is_initializer()]:
        graph.graph.inputs.remove(value)
        graph.ir_version = max(graph.ir_version, _CONSTANTS)
    return graph


def to_model(graph: ir.Model) -> onnx.ModelProto:
    """The model as files have it; what is stored says its type and shape itself."""
    model = ir.to_proto(graph)
    for place in reversed(range(len(model.graph.value_info))):
        if model.graph.value_info[place].name in graph.graph.initializers:
            del model.graph.value_info[place]
    return model


def operand(node: ir.Node, place: int) -> ir.Value:
    """What a node reads in this place, where it has to read something."""
    found = optional(node, place)
    if found is None:
        raise InputError(f"{node.op_type} '{node.name}' lacks input {place}", hint="export the model again")
    return found


def optional(node: ir.Node, place: int) -> ir.Value | None:
    """What a node reads in this place, None where it leaves that out."""
    return node.inputs[place] if place < len(node.inputs) else None


def made_by(value: ir.Value, *kinds: str) -> ir.Node | None:
    """The node that computes a value if it is one of these operators."""
    maker = value.producer()
    return maker if maker is not None and maker.op_type in kinds else None


def readers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once; for what is read inside of an If or Loop, the If or Loop."""
    graph = value.graph
    assert isinstance(graph, ir.Graph), "values of a graph are asked for"
    return list(dict.fromkeys(_holder(node, graph) for node in value.consumers()))


def constant(value: ir.Value | None) -> Array | None:
    """What is stored or a Constant node gives, None for anything else."""
    if value is None:
        return None
    try:
        tensor = ir.convenience.get_const_tensor(value)
    except ValueError:  # a sparse tensor
        return None
    return None if tensor is None else np.asarray(tensor.numpy())


def scalar(values: Array | None) -> float | None:
    """The one number of an array, None where it has none or several."""
    return None if values is None or values.size != 1 else float(values.reshape(-1)[0])


def sizes(value: ir.Value) -> Sizes | None:
    """Its dimensions, None for one that is open; None where nothing is known."""
    return None if value.shape is None else tuple(d if isinstance(d, int) else None for d in value.shape)


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be read, and given by the model, in place of `old`, whose name, type and sizes it gets."""
    new.type, new.shape, new.name = old.type or new.type, old.shape or new.shape, old.name
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def remove_unused(graph: ir.Graph) -> None:
    """Remove nodes and stored tensors that no output needs, in place; nodes are sorted."""
    for node in reversed(graph):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_output()):
            del graph.initializers[name]


def _unsound(said: str) -> InputError:
    return InputError(f"the model is not sound ONNX: {said}", hint="export it again")


def _first_cause(error: BaseException) -> BaseException:
    """What onnx_ir wraps once for every level that it is read at."""
    return error if error.__cause__ is None else _first_cause(error.__cause__)


def _check_complete(graph: onnx.GraphProto) -> None:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {name for node in graph.node for name in node.output}
    for node in graph.node:
        missing = [name for name in reads(node) if name not in known]
        if missing:
            raise InputError(
                f"the model is incomplete: {node.op_type} '{node.name}' reads '{missing[0]}', which is neither "
                "computed nor stored",
                hint="export it again, weights included",
            )


def _check_inner(graph: ir.Graph) -> None:
    """ONNX Runtime refuses it too, and onnx_ir does not see that the outer value is read."""
    for inner in graph.subgraphs():
        for value in inner.outputs:
            if value.producer() is None and not (value.is_graph_input() or value.is_initializer()):
                raise InputError(
                    f"the graph '{inner.name}' inside of the model gives '{value.name}', which is made outside of it",
                    hint="put an Identity into the inner graph",
                )


def _holder(node: ir.Node, graph: ir.Graph) -> ir.Node:
    """The node itself, or the one of `graph` that it is inside of."""
    if node.graph is graph:
        return node
    return next(outer for outer in graph if any(inner is node.graph for inner in _inside(outer)))


def _inside(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        held = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
        held = list(attribute.as_graphs()) if attribute.type == ir.AttributeType.GRAPHS else held
        for graph in held:
            yield graph
            yield from graph.subgraphs()
