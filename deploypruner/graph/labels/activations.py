"""What channels carry to the layers that read them: the inputs of convolutions, linear layers and attention."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from deploypruner.graph.dependency import Graph
from deploypruner.graph.execute.module import get_state
from deploypruner.graph.inputs import Inputs, as_arguments
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.labels.lazy_axes import JointAxis


@dataclass(frozen=True)
class Place:
    """Where channels of one group lie on one axis of a value.

    Args:
        group: Id.
        axis: Of the value.
        size: Length of that axis.
        position: `[k]` positions on the axis.
        channel: `[k]`, the channel at each of them.
    """

    group: str
    axis: int
    size: int
    position: IntArray
    channel: IntArray


# (value, its reader) -> places, by names of nodes; the reader is "" for a value that is looked at when it is made.
Places = dict[tuple[str, str], list[Place]]


class Carried:
    """Runs a traced model and sums up what its groups carry; see `observe`.

    Each reader of a channel counts the same, whatever the size of its input.

    Attributes:
        sums: Group id -> (`[2, C]`, `[C]`): mean absolute value and share of values that are not zero, added up over
            readers and calls, and how many were added; float64.

    Args:
        graph: The traced model.
        module: Its module, or a copy with the same names.
    """

    def __init__(self, graph: Graph, module: nn.Module) -> None:
        self._graph, self._module = graph, module
        self.sums = {g.id: (torch.zeros(2, g.size).double(), torch.zeros(g.size).double()) for g in graph.groups}
        self._known: Places | None = None

    def observe(self, inputs: Inputs) -> Any:
        """Run the model on some inputs without gradients, add to `sums`, and return its output."""
        args, kwargs = as_arguments(inputs)
        with torch.no_grad():
            if isinstance(self._module, GraphModule):
                placeholders = self._module.graph.find_nodes(op="placeholder")
                names = [str(node.target) for node in placeholders][len(args) :]
                return _WatchingInterpreter(self._module, self._places, self._note).run(
                    *args, *(kwargs[n] for n in names)
                )
            handles = list(_hooked(self._graph, self._module, self._note))
            try:
                return self._module(*args, **kwargs)
            finally:
                for handle in handles:
                    handle.remove()

    def _note(self, value: Tensor, place: Place) -> None:
        if value.ndim <= place.axis or value.shape[place.axis] != place.size or not value.is_floating_point():
            return  # an axis whose length depends on the batch
        rest = [axis for axis in range(value.ndim) if axis != place.axis]
        both = (
            torch.stack([v.mean(dim=rest) if rest else v for v in (value.abs(), value.sign().abs())]).double().cpu()
        )
        (total, count), channel = self.sums[place.group], torch.as_tensor(place.channel)
        total.index_add_(1, channel, both[:, torch.as_tensor(place.position)])
        count.index_add_(0, channel, torch.ones(len(channel)).double())

    @property
    def _places(self) -> Places:
        if self._known is None:
            self._known = _places(self._graph)
        return self._known


class _WatchingInterpreter(Interpreter):
    """Runs a graph and shows values to `note` when a layer is about to read them, or has made them."""

    def __init__(self, module: GraphModule, places: Places, note: Any) -> None:
        super().__init__(module)
        self._places, self._note = places, note

    def run_node(self, n: Node) -> Any:
        """Run one node."""
        for source in n.all_input_nodes:
            for place in self._places.get((source.name, n.name), ()):
                self._note(self.env[source], place)
        result = super().run_node(n)
        for place in self._places.get((n.name, ""), ()):
            self._note(result, place)
        return result


def _places(graph: Graph) -> Places:
    """Where to look: at the inputs of every contraction, and at what makes the groups that none reads."""
    owner = _owners(graph)
    found: Places = defaultdict(list)
    read: set[str] = set()
    for contraction in graph.labelling.contractions:
        reader = contraction.node
        for value in dict.fromkeys(reader.all_input_nodes if reader is not None else ()):
            if value.op != "get_attr" and reader is not None:
                places = list(_on_value(graph, value, owner))
                found[value.name, reader.name] += places
                read |= {place.group for place in places}
    unread = [group for group in graph.groups if group.id not in read]
    makers = {a.weight: g.id for g in unread for a in graph.last_affines(g)}
    names = {n: state.names[0] for state in graph.labelling.state.values() for n in state.names}
    assert isinstance(graph.module, GraphModule), "only a graph has nodes"
    for node in graph.module.graph.nodes if makers else ():
        weights = {names.get(str(n.target), "") for n in node.all_input_nodes if n.op == "get_attr"}
        for group in {makers[w] for w in weights if w in makers}:
            found[node.name, ""] += [p for p in _on_value(graph, node, owner) if p.group == group]
    return {key: places for key, places in found.items() if places}


def _owners(graph: Graph) -> tuple[list[str], IntArray, IntArray]:
    """Ids of groups, and atom -> its group's number (-1 for none) and its channel."""
    ids = [group.id for group in graph.groups]
    number = np.full(graph.labelling.atoms.count, -1)
    channel = np.zeros(graph.labelling.atoms.count, np.int64)
    for i, group_id in enumerate(ids):
        number[graph.atoms[group_id]] = i
        channel[graph.atoms[group_id]] = np.arange(len(graph.atoms[group_id]))
    return ids, number, channel


def _on_value(graph: Graph, node: Node, owner: tuple[list[str], IntArray, IntArray]) -> Iterator[Place]:
    axes, (ids, number, channel) = graph.labelling.values.get(node), owner
    if not isinstance(axes, list) or not isinstance(node.meta.get("val"), Tensor):
        return
    for axis, labels in enumerate(axes):
        if isinstance(labels, JointAxis):
            labels = labels.joint.axes[labels.position] if labels.joint.axes is not None else None
        known = graph.axes.number(labels)
        if known is None:
            continue
        rows = graph.axes.rows[known]
        for group in np.unique(number[rows[rows > 0]]).tolist():
            position, column = np.nonzero((rows > 0) & (number[rows] == group))
            if group >= 0:
                yield Place(ids[group], axis, len(rows), position, channel[rows[position, column]])


def _hooked(graph: Graph, module: nn.Module, note: Any) -> Iterator[Any]:
    """Without a graph: hooks on the modules that read each group, or on those it leaves through."""
    for group in graph.groups:
        last = {(a.weight, a.axis) for a in graph.last_affines(group)}
        roles = {(m.parameter, m.axis): _reads(graph, m.parameter, m.axis) for m in group.members}
        readers = [m for m in group.members if roles[m.parameter, m.axis]]
        for member in readers or [m for m in group.members if (m.parameter, m.axis) in last]:
            weight = get_state(module, member.parameter)
            layer = module.get_submodule(member.parameter.rpartition(".")[0])
            axis = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
            channel = np.repeat(np.arange(group.size), member.index.shape[1])
            position, size = member.index.reshape(-1), weight.shape[member.axis]

            def show(
                value: Tensor, *, axis: int = axis, rest: Any = (size, position, channel), g: str = group.id
            ) -> None:
                note(value, Place(g, axis % value.ndim, *rest))

            if readers:
                yield layer.register_forward_pre_hook(lambda _, args, show=show: show(args[0]))
            else:
                yield layer.register_forward_hook(lambda _, args, out, show=show: show(out))


def _reads(graph: Graph, parameter: str, axis: int) -> bool:
    state = next(s for s in graph.labelling.state.values() if parameter in s.names)
    return state.roles.get(axis) == "consumer"
