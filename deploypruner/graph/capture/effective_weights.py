"""A model with its weights written out: under weight norm a criterion sees what the layer multiplies with.

`v` and `g` of a weight norm say little on their own: a filter whose `g` is zero is zero, however large its `v`. So
the weights that layers really use are computed once and put in the place of what they are computed from. The copy
has the same nodes, so channels of the one are found in the other by the axes they lie on.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.fx import Node

from deploypruner.graph.dependency import Graph, assemble
from deploypruner.graph.execute.module import TracedModule, get_state, set_state
from deploypruner.graph.labels.propagate import Propagation
from deploypruner.graph.nodes import is_tensor


@dataclass(frozen=True)
class Effective:
    """A graph whose layers hold the weights they use.

    Args:
        graph: It.
        places: Group id of the original -> per channel (group id, channel) in `graph`; groups without a counterpart
            are not named.
    """

    graph: Graph
    places: dict[str, list[tuple[str, int]]]


def with_effective_weights(graph: Graph) -> Effective | None:
    """The same model with computed weights written out, None where no layer computes its weight from parameters."""
    if not isinstance(graph.module, TracedModule):
        return None
    computed = _computed_weights(graph)
    if not computed:
        return None
    shared = {id(s.tensor): s.tensor for s in graph.labelling.state.values()}
    module: TracedModule = copy.deepcopy(graph.module, memo=dict(shared))
    module.training_graph = None
    copies = {node.name: node for node in module.graph.nodes}
    for node in computed:
        _write_out(module, copies[node.name], _value(graph.module, node))
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    tracing = Propagation(module)
    found = assemble(
        module,
        tracing,
        example_inputs=graph.example_inputs,
        dynamic_batch=graph.dynamic_batch,
        open_axes=graph.open_axes,
        remarks=graph.remarks,
        front_end=graph.front_end,
        cut=graph.cut,
    )
    return Effective(found, _places(graph, found))


def _computed_weights(graph: Graph) -> list[Node]:
    """Weights of layers that are the result of calls on parameters and buffers alone."""
    assert isinstance(graph.module, TracedModule), "only a graph has nodes"
    from_state: dict[Node, bool] = {}  # node -> does it depend on a parameter?
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            from_state[node] = isinstance(get_state(graph.module, str(node.target)), nn.Parameter)
        elif (
            node.op == "call_function" and node.all_input_nodes and all(n in from_state for n in node.all_input_nodes)
        ):
            from_state[node] = any(from_state[n] for n in node.all_input_nodes)
    layers = (c.node for c in graph.labelling.contractions if c.node is not None and c.node not in from_state)
    sources = (source for layer in layers for source in layer.all_input_nodes)
    return [n for n in dict.fromkeys(sources) if n.op == "call_function" and from_state.get(n) and is_tensor(n)]


def _value(module: TracedModule, node: Node) -> Tensor:
    """What a node that reads nothing but state computes."""
    known: dict[Node, Any] = {}

    def value(at: Node) -> Any:
        if at not in known:
            if at.op == "get_attr":
                state = get_state(module, str(at.target))
                known[at] = state.detach() if isinstance(state, Tensor) else state
            else:
                args, kwargs = torch.fx.node.map_arg((at.args, at.kwargs), value)
                assert callable(at.target), "an exported graph only calls functions"
                known[at] = at.target(*args, **kwargs)
        return known[at]

    with torch.no_grad():
        result: Tensor = value(node)
        return result.detach().clone()


def _write_out(module: TracedModule, node: Node, value: Tensor) -> None:
    reads = [n for n in _ancestors(node) if n.op == "get_attr"]
    name = f"{reads[0].target if reads else node.name}_effective"
    while hasattr(module, name):
        name += "_again"
    set_state(module, name, nn.Parameter(value))
    with module.graph.inserting_before(node):
        read = module.graph.get_attr(name)
    read.meta = dict(node.meta)
    node.replace_all_uses_with(read)


def _ancestors(node: Node) -> list[Node]:
    found, waiting = dict[Node, None](), [node]
    while waiting:
        at = waiting.pop()
        found[at] = None
        waiting += [n for n in at.all_input_nodes if n not in found]
    return list(found)


def _places(graph: Graph, other: Graph) -> dict[str, list[tuple[str, int]]]:
    assert isinstance(graph.module, TracedModule), "only a graph has nodes"
    assert isinstance(other.module, TracedModule), "only a graph has nodes"
    theirs = {node.name: node for node in other.module.graph.nodes}
    atoms: dict[int, int] = {}
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and node.name in theirs and is_tensor(node):
            axes = (graph.labelling.values.get(node), other.labelling.values.get(theirs[node.name]))
            for mine, its in zip(axes[0] or [], axes[1] or [], strict=False):
                atoms |= _pairs(_rows(graph, mine), _rows(other, its))
    where = {a: (g, c) for g, ids in other.atoms.items() for c, a in enumerate(ids.tolist())}
    found = {}
    for group in graph.groups:
        places = [where.get(atoms.get(a, 0)) for a in graph.atoms[group.id].tolist()]
        if all(place is not None for place in places):
            found[group.id] = [place for place in places if place is not None]
    return found


def _rows(graph: Graph, labels: Any) -> NDArray[np.int64] | None:
    number = graph.axes.number(labels) if isinstance(labels, np.ndarray) else None
    return None if number is None else graph.axes.rows[number]


def _pairs(mine: NDArray[np.int64] | None, its: NDArray[np.int64] | None) -> dict[int, int]:
    """Atoms that alone stand for one index, on both sides."""
    if mine is None or its is None or len(mine) != len(its) or mine.shape[1] != 1 or its.shape[1] != 1:
        return {}
    return {a: b for a, b in zip(mine[:, 0].tolist(), its[:, 0].tolist(), strict=True) if a and b}
