"""Residual branches whose removal leaves the identity: found from the graph, whatever class wrote them.

In `x + f(x)` the addition gives `x` where `f` is gone. So a branch is an operand of an addition that

* is the result of nodes that serve nothing else (the *region*), at least one of them a convolution or linear layer,
* has the shape of the other operand, the *shortcut*, and reads it: directly, or as part of a sum (`x + f(x) + g(x)`).

Layer scale, stochastic depth, norms before or inside, squeeze-and-excitation and depthwise layers are nodes of the
region like any other. A shortcut with a layer of its own (a transition) is not what the branch reads, so such a block
has no branch. Of branches inside branches only the innermost count. Branches whose layers share parameters with
anything else, or that write into what they read, are left out.

Source: the choice "block kept or gone" is that of MDP, arXiv:2504.02168, eq. 4 (a bit per residual block), and of
LayerPrune, arXiv:2007.05667. Finding them in a graph is ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from torch.fx import Graph as FxGraph
from torch.fx import GraphModule, Node

from deploypruner.graph.execute.module import get_state
from deploypruner.graph.labels.labelling import Labelling, Residual
from deploypruner.graph.nodes import arguments, is_tensor, op_name, shape_of, writes_into

# A second one of these on the result of a first changes nothing.
_IDEMPOTENT = frozenset(("relu", "relu6", "hardtanh", "clamp", "clamp_min"))


def find_residuals(module: GraphModule, labelling: Labelling, graph: FxGraph | None = None) -> dict[str, Residual]:
    """Branch id -> where it is, in the order of the graph; each gets an atom.

    Args:
        module: The traced graph.
        labelling: Its labels; the atoms are added to it.
        graph: Another graph over the state of the module, None for its own.
    """
    graph = graph or module.graph
    layers = {c.node for c in labelling.contractions}
    readers = _readers(module, graph)
    found: list[tuple[Node, Node, Node, frozenset[Node]]] = []
    for add in graph.nodes:
        for shortcut, branch in _operands(add):
            region = _region(add, branch)
            if _is_branch(module, shortcut, region, layers, readers):
                found.append((add, shortcut, branch, region))
                break
    adds = {add for add, *_ in found}
    innermost = [one for one in found if not one[3] & adds]
    names = _names([_layer_names(module, region, layers) for *_, region in innermost])
    return {
        name: Residual(add, shortcut, branch, region, labelling.atoms.alone())
        for name, (add, shortcut, branch, region) in zip(names, innermost, strict=True)
    }


def parameters_of(module: GraphModule, graph: FxGraph, residual: Residual) -> tuple[str, ...]:
    """Names of the parameters and buffers that only this branch of a graph reads, in the order of the graph."""
    reads = (str(node.target) for node in graph.nodes if node in residual.region and node.op == "get_attr")
    return tuple(name for name in dict.fromkeys(reads) if isinstance(get_state(module, name), torch.Tensor))


def drop(graph: FxGraph, residual: Residual, copies: dict[Node, Node]) -> set[Node]:
    """Take a branch out of a copy of the graph: what read the addition reads the shortcut.

    Args:
        graph: The copy.
        residual: Of the original graph.
        copies: Original node -> the node of the copy that stands for it; brought up to date.

    Returns:
        The original nodes that have no counterpart of their own any more.
    """
    add, stays = copies[residual.add], copies[residual.shortcut]
    region = {copies[node] for node in residual.region}
    readers = list(add.users)
    add.replace_all_uses_with(stays)
    gone = [add, *(node for node in reversed(graph.nodes) if node in region)]
    for reader in list(readers):
        if _repeats(reader, stays):
            readers += [user for user in reader.users if user not in readers]
            readers.remove(reader)
            reader.replace_all_uses_with(stays)
            gone.insert(0, reader)
    for node in gone:
        graph.erase_node(node)
    stand_in = _own_tensor(graph, stays, readers)
    lost = {original for original, copied in copies.items() if copied in set(gone)}
    copies.update(dict.fromkeys(lost, stand_in))
    return lost


def _own_tensor(graph: FxGraph, stays: Node, readers: Sequence[Node]) -> Node:
    """What `readers` read: a copy where one of them, or of the shortcut's others, writes into what all would share.

    The sum was a tensor of its own.
    """
    alone = stays.op == "call_function" and len(stays.users) == 1
    if alone or not any(writes_into(user, stays) for user in stays.users):
        return stays
    with graph.inserting_before(next(node for node in graph.nodes if node in readers)):
        own = graph.call_function(torch.ops.aten.clone.default, (stays,))
    own.meta = dict(stays.meta)
    for reader in readers:
        reader.replace_input_with(stays, own)
    return own


def _repeats(reader: Node, stays: Node) -> bool:
    """Is `reader` the same activation as the one that made `stays`, so that it changes nothing?"""
    name = op_name(reader)
    return (
        name in _IDEMPOTENT
        and name == op_name(stays)
        and reader.args[0] is stays
        and (reader.args[1:], reader.kwargs) == (stays.args[1:], stays.kwargs)
    )


# ---------------------------------------------------------------------- finding


def pair_residuals(
    residuals: Mapping[str, Residual], trained: Mapping[str, Residual]
) -> tuple[dict[str, Residual], dict[str, Residual]]:
    """Branches that two graphs of one model both have, each with one atom in both.

    Args:
        residuals: Of the graph of evaluation mode.
        trained: Of the graph of training mode.
    """
    both = [name for name in residuals if name in trained]
    return (
        {name: residuals[name] for name in both},
        {name: replace(trained[name], atom=residuals[name].atom) for name in both},
    )


def _operands(add: Node) -> Iterator[tuple[Node, Node]]:
    """(shortcut, branch) both ways round, where a node adds two tensors of its own shape."""
    if op_name(add) != "add" or not is_tensor(add):
        return
    left, right = add.args[0], arguments(add)["other"]
    if not isinstance(left, Node) or not isinstance(right, Node) or left is right:
        return
    if not (is_tensor(left) and is_tensor(right)) or not shape_of(left) == shape_of(right) == shape_of(add):
        return
    yield left, right
    # `left` is all of what stays only if `right` was not scaled.
    if arguments(add)["alpha"] == 1:
        yield right, left


def _region(add: Node, branch: Node) -> frozenset[Node]:
    """Nodes all of whose results end in this operand of the addition; empty where the operand has other readers."""
    region: set[Node] = set()
    waiting = [branch]
    while waiting:
        node = waiting.pop()
        if node.op not in ("call_function", "get_attr") or node in region:
            continue
        if all(user in region or (user is add and node is branch) for user in node.users):
            region.add(node)
            waiting += node.all_input_nodes
    return frozenset(region)


def _is_branch(
    module: GraphModule,
    shortcut: Node,
    region: frozenset[Node],
    layers: set[Node | None],
    readers: Mapping[int, set[Node]],
) -> bool:
    """Does the region read the shortcut, hold a layer, and touch nothing that others use?"""
    inside = [node for node in region if node in layers]
    shared = any(source.op == "get_attr" and source not in region for n in inside for source in n.all_input_nodes)
    if not inside or shared or shortcut in region:
        return False
    read = {source for node in region for source in node.all_input_nodes} - region
    if not read & set(_summands(shortcut)):
        return False
    if any(
        writes_into(node, source) and _origin(source) not in region
        for node in region
        for source in node.args
        if isinstance(source, Node)
    ):
        return False
    state = [id(get_state(module, str(node.target))) for node in region if node.op == "get_attr"]
    return all(readers[tensor] <= region for tensor in state)


def _summands(node: Node) -> Iterator[Node]:
    """A tensor and, where it is a sum, whatever was added up to it: the same residual stream further up."""
    yield node
    if op_name(node) == "add":
        for operand in (node.args[0], arguments(node)["other"]):
            if isinstance(operand, Node) and is_tensor(operand):
                yield from _summands(operand)


def _origin(node: Node) -> Node:
    """The node that made the storage which `node` may only be a view of."""
    while isinstance(node.target, torch._ops.OpOverload):
        schema = node.target._schema
        shares = any(returned.alias_info is not None for returned in schema.returns)
        if not shares or not isinstance(node.args[0], Node):
            return node
        node = node.args[0]
    return node


def _readers(module: GraphModule, graph: FxGraph) -> dict[int, set[Node]]:
    """id(tensor) -> every node that reads it."""
    found: dict[int, set[Node]] = {}
    for node in graph.find_nodes(op="get_attr"):
        found.setdefault(id(get_state(module, str(node.target))), set()).add(node)
    return found


# ---------------------------------------------------------------------- names


def _layer_names(module: GraphModule, region: frozenset[Node], layers: set[Node | None]) -> list[str]:
    """Names of the weights of a region's layers; of all its parameters where weights are computed."""
    inside = [layer for layer in layers if layer is not None and layer in region]
    reads = [str(source.target) for layer in inside for source in layer.all_input_nodes if source.op == "get_attr"]
    return reads or [str(node.target) for node in region if node.op == "get_attr"]


def _names(weights: Iterable[Sequence[str]]) -> list[str]:
    """One name a branch: the module that its layers share, with a number where several have the same."""
    names, seen = [], Counter[str]()
    for layers in weights:
        owners = [name.rpartition(".")[0].split(".") for name in layers]
        shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*owners, strict=False))
        name = ".".join(parts[0] for parts in shared) or "branch"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return names
