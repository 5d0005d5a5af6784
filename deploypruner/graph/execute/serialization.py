"""A graph as plain data, which any pickle holds, and back; torch's own form loses marks and cannot be read."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.fx.graph import CodeGen, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

# What nodes carry that is worth keeping, and plain.
_KEPT = ("stack_trace",)


@dataclass(frozen=True)
class _Reference:
    """Stands for a node among arguments."""

    name: str


@dataclass(frozen=True)
class _Operator:
    """An operator by its name: "aten.relu.default"."""

    name: str


@dataclass(frozen=True)
class _Constant:
    """A memory format or layout by its name: "contiguous_format"."""

    name: str


@dataclass(frozen=True)
class PlainNode:
    """One node: what `Graph.create_node` takes, and its marks."""

    op: str
    name: str
    target: Any
    args: Any
    kwargs: Any
    marks: dict[str, Any]


@dataclass(frozen=True)
class Plain:
    """A graph: its nodes in order, and how its inputs and outputs are nested (None: flat)."""

    nodes: tuple[PlainNode, ...]
    signature: tuple[list[str], Any, Any] | None


def to_plain(graph: Graph) -> Plain:
    """The graph as plain data; source lines, module paths and marks stay, recorded values go."""
    codegen = graph._codegen
    signature = None
    if isinstance(codegen, _PyTreeCodeGen):
        info = codegen.pytree_info
        signature = (list(info.orig_args), info.in_spec, info.out_spec)
    return Plain(tuple(map(_plain_node, graph.nodes)), signature)


def nodes_of(plain: Plain) -> Graph:
    """The graph that was made into plain data."""
    graph, made = Graph(), dict[str, Node]()
    for record in plain.nodes:
        args, kwargs = (_decoded(value, made) for value in (record.args, record.kwargs))
        target = _decoded(record.target, made)
        if record.op == "output":
            node = graph.output(args[0])
        else:
            node = graph.create_node(record.op, target, args, kwargs, name=record.name)
        node.meta = dict(record.marks)
        made[record.name] = node
    codegen = CodeGen()
    if plain.signature is not None:
        names, taken, returned = plain.signature
        for spec in (taken, returned):
            _register_types(spec)
        codegen = _PyTreeCodeGen(_PyTreeInfo(names, taken, returned))
    graph.set_codegen(codegen)
    graph.lint()
    return graph


def _plain_node(node: Node) -> PlainNode:
    marks = {
        key: value
        for key, value in node.meta.items()
        if key in _KEPT or (isinstance(value, bool | float | tuple) and _is_plain(value))
    }
    path = [
        (str(key), (str(name), str(kind))) for key, (name, kind) in (node.meta.get("nn_module_stack") or {}).items()
    ]
    if path:
        marks["nn_module_stack"] = dict(path)
    return PlainNode(node.op, node.name, _encoded(node.target), _encoded(node.args), _encoded(node.kwargs), marks)


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | float | str) or (isinstance(value, tuple) and all(map(_is_plain, value)))


def _encoded(value: Any) -> Any:
    if isinstance(value, Node):
        return _Reference(value.name)
    if isinstance(value, torch._ops.OpOverload):
        return _Operator(str(value))
    if isinstance(value, torch._ops.HigherOrderOperator):
        return _Operator(f"higher_order.{value.name()}")
    if isinstance(value, torch.memory_format | torch.layout):  # older protocols of pickle cannot hold these
        return _Constant(str(value).removeprefix("torch."))
    if isinstance(value, tuple):
        return tuple(map(_encoded, value))
    if isinstance(value, list):
        return list(map(_encoded, value))
    if isinstance(value, Mapping):
        return {key: _encoded(item) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*map(_encoded, (value.start, value.stop, value.step)))
    return value


def _decoded(value: Any, made: Mapping[str, Node]) -> Any:
    if isinstance(value, _Reference):
        return made[value.name]
    if isinstance(value, _Operator):
        return operator.attrgetter(value.name)(torch.ops)
    if isinstance(value, _Constant):
        return getattr(torch, value.name)
    if isinstance(value, tuple | list):
        return type(value)(_decoded(item, made) for item in value)
    if isinstance(value, dict):
        return {key: _decoded(item, made) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_decoded(item, made) for item in (value.start, value.stop, value.step)))
    return value


def _register_types(spec: Any) -> None:
    """Let torch look into the dataclasses of a signature, which another process may not have done yet."""
    if isinstance(spec, pytree.TreeSpec):
        kind = spec.type
        if isinstance(kind, type) and dataclasses.is_dataclass(kind) and kind not in pytree.SUPPORTED_NODES:
            pytree.register_dataclass(kind)
        for child in spec.children():
            _register_types(child)
