"""Where a group's channels leave: the layers after which nothing else of the group stands in their way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.labelling import Affine, Labelling
from deploypruner.graph.labels.lazy_axes import JointAxis
from deploypruner.graph.nodes import op_name
from deploypruner.records import Group

_PRODUCTS = ("mul", "div")


class Labelled(Protocol):
    """What is asked of a traced model: its module, the labels of its tensors, and the atoms of each group."""

    @property
    def module(self) -> Any:
        """The traced module."""

    @property
    def labelling(self) -> Labelling:
        """Labels of its tensors."""

    @property
    def atoms(self) -> Mapping[str, IntArray]:
        """Group id -> its atoms."""


def find_last_affines(graph: Labelled, group: Group) -> tuple[Affine, ...]:
    """See `Graph.last_affines`."""
    on = {(member.parameter, member.axis) for member in group.members}
    affines = [a for a in graph.labelling.affines.values() if (a.weight, a.axis) in on]
    if graph.labelling.values and affines:
        return _leaving(graph, group, affines)
    norms = [a for a in affines if a.role == "norm"]
    return tuple(norms or affines)


def _leaving(graph: Labelled, group: Group, affines: Sequence[Affine]) -> tuple[Affine, ...]:
    """Those of a group's layers whose channels reach a reader without passing another of them.

    A convolution whose only way leads to its batch norm is not among them, nor is a batch norm before a depthwise
    convolution of the same channels; a shortcut without a norm of its own is. Where a group has norms, a layer
    without one that only scales what passed a norm (the end of a squeeze-and-excitation) is not either.

    Args:
        graph: Traced by torch.export.
        group: One of its groups.
        affines: All layers that write the group's channels.
    """
    assert isinstance(graph.module, GraphModule), "only an exported graph has nodes to follow"
    calls = _calls(graph, affines)
    stops = {node for nodes in calls.values() for node in nodes}
    normed = any(a.role == "norm" for a in affines)
    found = []
    for affine in affines:
        scales_only = normed and affine.role != "norm"
        if any(_is_read(graph, group, node, stops, past_products=not scales_only) for node in calls[affine.weight]):
            found.append(affine)
    return tuple(found) or tuple(affines)


def _calls(graph: Labelled, affines: Sequence[Affine]) -> dict[str, list[Node]]:
    """Weight name -> calls that use it."""
    wanted = {id(get_state(graph.module, a.weight)): a.weight for a in affines}
    calls: dict[str, list[Node]] = {a.weight: [] for a in affines}
    assert isinstance(graph.module, GraphModule), "checked by the caller"
    for node in graph.module.graph.find_nodes(op="get_attr"):
        name = wanted.get(id(get_state(graph.module, str(node.target))))
        if name is not None:
            calls[name] += list(node.users)
    return calls


def _is_read(graph: Labelled, group: Group, start: Node, stops: set[Node], *, past_products: bool) -> bool:
    """Does what `start` made reach a node that no longer carries the group, on a way around all of `stops`?"""
    seen, stack = {start}, [start]
    while stack:
        node = stack.pop()
        for user in node.users:
            if user in seen or user in stops:
                continue
            seen.add(user)
            if not _carries(graph, group, user):
                return True
            if past_products or not _is_product(graph, group, user):
                stack.append(user)
    return False


def _is_product(graph: Labelled, group: Group, node: Node) -> bool:
    """Does this node multiply two tensors that both carry the group?"""
    return op_name(node) in _PRODUCTS and sum(_carries(graph, group, n) for n in node.all_input_nodes) > 1


def _carries(graph: Labelled, group: Group, node: Node) -> bool:
    """Do the group's channels lie on an axis of what the node holds?"""
    atoms, algebra = graph.atoms[group.id], graph.labelling.atoms
    return any(bool(np.isin(algebra.canon(rows), atoms).any()) for rows in _labels(graph, node))


def _labels(graph: Labelled, node: Node) -> Iterator[np.ndarray]:
    for axis in pytree.tree_leaves(graph.labelling.values.get(node), is_leaf=lambda v: not isinstance(v, list)):
        labels = axis.joint.block.reshape(-1, axis.joint.block.shape[-1]) if isinstance(axis, JointAxis) else axis
        if labels is not None:
            yield labels
