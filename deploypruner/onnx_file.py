"""ONNX files as we write them: nodes in topological order, and valid by onnx's own checker."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, MutableSequence, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError

from deploypruner.errors import InputError, VerificationError, said_by

# A protobuf message may not reach 2 GiB; the rest is room for the graph beside the weights.
LARGEST_BYTES = 2**31 - 2**20
# What onnx raises over a model that is none.
_INVALID = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, DecodeError)

TRANSPOSED = ".T"
"""Stands behind the name of a parameter that a file of ours holds transposed."""


def layer_called(weight: str) -> str:
    """What the user calls the layer of a weight: "blocks.0.up" for "blocks.0.up.weight", transposed or not."""
    return weight.removesuffix(TRANSPOSED).removesuffix(".weight")


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Write a model whose nodes stand in topological order, and check the file. Every ONNX file of ours is made here.

    Args:
        model: Its nodes are sorted in place; a sorted one stays as it is, to the byte.
        path: One file, weights included. The caller makes it atomic.

    Raises:
        InputError: The graph is a circle, or 2 GB and more.
        VerificationError: onnx's checker refuses the file.
    """
    sort_nodes(model.graph)
    for function in model.functions:
        _reorder(function.node)
    try:
        onnx.save(model, path)
    except (EncodeError, ValueError) as error:
        raise InputError(
            f"{path.name} cannot be written: {said_by(error)}", hint="one ONNX file ends at 2 GB; prune it further"
        ) from error
    fault = onnx_fault(path)
    if fault:
        raise VerificationError(
            f"{path.name} would not be valid ONNX: {fault}", hint="report it with the model that it was made from"
        )


def read_onnx(path: Path) -> onnx.ModelProto:
    """A file of any origin, weights included, with its nodes sorted and shapes inferred.

    Raises:
        InputError: It cannot be read, is a circle, or onnx's checker refuses it even so.
    """
    try:
        model = onnx.load(path)
        sort_nodes(model.graph)
        model = onnx.shape_inference.infer_shapes(model)
    except (OSError, ValueError, TypeError, KeyError, *_INVALID) as error:
        raise InputError(
            f"cannot read '{path}' as ONNX: {said_by(error)}", hint="give a complete .onnx file"
        ) from error
    fault = onnx_fault(model)
    if fault:
        raise InputError(f"'{path}' is not valid ONNX: {fault}", hint="export it again")
    return model


def onnx_fault(model: Path | onnx.ModelProto) -> str:
    """What onnx's checker says against a model, inferred shapes and types included; "" for a valid one.

    Nodes of a domain that onnx does not know, ours among them, are checked for their connections alone. A file is
    read by its path, as external weights and files beyond 2 GB need it.
    """
    try:
        onnx.checker.check_model(model, full_check=True)
    except (ValueError, *_INVALID) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node after those it reads from, in place; those of the graphs inside it (If, Loop), too.

    Raises:
        InputError: The graph is a circle.
    """
    for node in graph.node:
        for inside in graphs_in(node):
            sort_nodes(inside)
    _reorder(graph.node)


def _topological(nodes: Sequence[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes, each after those it reads from, otherwise as they stood.

    Raises:
        InputError: The graph is a circle.
    """
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    waits = [{makers[name] for name in reads(node) if name in makers} for node in nodes]
    followers: list[list[int]] = [[] for _ in nodes]
    for index, sources in enumerate(waits):
        for source in sources:
            followers[source].append(index)
    left = [len(sources) for sources in waits]
    ready = [index for index, count in enumerate(left) if not count]  # ascending, and so a heap
    order: list[int] = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for follower in followers[index]:
            left[follower] -= 1
            if not left[follower]:
                heapq.heappush(ready, follower)
    if len(order) < len(nodes):
        held = nodes[min(set(range(len(nodes))) - set(order))]
        raise InputError(
            f"the model's graph is a circle through {held.op_type} '{held.name}'", hint="export it again"
        )
    return [nodes[index] for index in order]


def reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads; of the graphs inside it (If, Loop) what they take from outside."""
    names = [name for name in node.input if name]
    for graph in graphs_in(node):
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for inside in graph.node for name in inside.output}
        wanted = [name for inside in graph.node for name in reads(inside)]
        names += [name for name in (*wanted, *(value.name for value in graph.output)) if name not in own]
    return names


def rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Call tensors differently wherever a node makes or reads them, inside If and Loop too, in place.

    The graph's own inputs, outputs and constants keep their names.
    """
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for inside in graphs_in(node):
            own = {value.name for value in (*inside.input, *inside.initializer)}
            own |= {name for inner in inside.node for name in inner.output}
            outer = {name: new for name, new in names.items() if name not in own}
            rename(inside, outer)
            for value in inside.output:
                value.name = outer.get(value.name, value.name)


def every_node(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes of a model: those of the graphs inside others (If, Loop) and of its own functions, too."""
    waiting = list(model.graph.node)
    for function in model.functions:
        waiting += function.node
    while waiting:
        node = waiting.pop()
        yield node
        for graph in graphs_in(node):
            waiting += graph.node


def _reorder(nodes: MutableSequence[onnx.NodeProto]) -> None:
    held = list(nodes)
    found = _topological(held)
    if any(a is not b for a, b in zip(found, held, strict=True)):
        copies = []
        for node in found:  # protobuf frees what is deleted
            copies.append(onnx.NodeProto())
            copies[-1].CopyFrom(node)
        del nodes[:]
        nodes.extend(copies)


def graphs_in(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs that a node holds: the branches of an If, the body of a Loop."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs
