"""The order in which every group can spare its channels, from what the layers behind it read in the dense network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import psutil
import torch
from torch import Tensor
from torch.fx import Node

from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.graph.execute.float64_interpreter import Streamed
from deploypruner.graph.execute.module import TracedModule, get_state
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.graph.nodes import arguments, op_name
from deploypruner.records import Member
from deploypruner.train.batches import Batch
from deploypruner.train.least_squares import CONVOLUTIONS, columns, places
from deploypruner.train.obs import Reader, eliminate

# Part of the free memory for sums over inputs; a group's readers are needed together.
_MEMORY = 0.25
# Rows of X per column below which the samples alone do not say what a layer can do without, and the ridge
# there: the usual one of reconstruction.
_FEW, _RIDGE = 8, 0.03


@torch.no_grad()
def order_by_readers(
    graph: Graph, order: Mapping[str, IntArray], batches: Iterable[Batch], *, positions: int = 64
) -> dict[str, IntArray]:
    """Channels of each group by structured OBS over all layers that read them, the last to go first.

    A group without such a layer (its readers compute their weights, or filter each channel alone) keeps its order.

    Args:
        graph: The dense model.
        order: Group id -> channels, the most important first.
        batches: A few hundred samples; labels are not looked at.
        positions: Output positions taken of each sample, at most.

    Raises:
        InputError: No samples, numbers that are not finite, or a model without a graph.
    """
    if not isinstance(graph.module, TracedModule):
        raise InputError(
            "channels can be chosen by their readers in models that torch.export traces, and this one it could not",
            hint="leave the option out",
        )
    samples = list(batches)
    if not samples:
        raise InputError("there are no samples to choose channels on", hint="check the training split")
    readers = _readers(graph.module)
    found = dict(order)
    for groups in _portions(graph, graph.module, {*readers.values()}):
        names = {member.parameter for members in groups.values() for member in members}
        calls = {node: name for node, name in readers.items() if name in names}
        sums = _sums(graph.module, calls, samples, positions)
        for name, members in groups.items():
            chosen = eliminate([_reader(graph.module, member, sums[member.parameter]) for member in members])
            found[name] = chosen.order[::-1].copy()
    return found


def _portions(graph: Graph, module: TracedModule, readers: set[str]) -> Iterator[dict[str, list[Member]]]:
    """Group id -> where it is read, for as many groups at a time as the memory allows sums for."""
    room = _MEMORY * psutil.virtual_memory().available
    portion, size = dict[str, list[Member]](), 0.0
    for group in graph.groups:
        members = [member for member in group.members if member.axis == 1 and member.parameter in readers]
        if not members:
            continue
        shapes = [get_state(module, member.parameter).shape for member in members]
        more = sum(8.0 * (shape[1:].numel() + 1) ** 2 for shape in shapes)
        if portion and size + more > room:
            yield portion
            portion, size = {}, 0.0
        portion[group.id], size = members, size + more
    if portion:
        yield portion


def _readers(module: TracedModule) -> dict[Node, str]:
    """Calls of convolutions and linear layers that mix their input channels -> name of their weight."""
    found = {}
    for node in module.graph.nodes:
        if op_name(node) not in ("linear", *CONVOLUTIONS):
            continue
        given = arguments(node)
        weight = given["weight"]
        if isinstance(weight, Node) and weight.op == "get_attr" and int(given.get("groups") or 1) == 1:
            found[node] = str(weight.target)
    return found


def _sums(
    module: TracedModule, readers: Mapping[Node, str], batches: Iterable[Batch], positions: int
) -> dict[str, Tensor]:
    """Name of a weight -> X^T X of what it reads, with a column of ones."""
    runner, sums = Streamed(module, torch.float32), dict[str, Tensor]()
    chosen = torch.Generator().manual_seed(0)
    for inputs, _ in batches:
        held: dict[Node, Tensor] = {}
        for node, value in runner.steps(tuple(inputs), held):
            if node not in readers:
                continue
            op, given, weight = op_name(node), arguments(node), get_state(module, readers[node])
            count = places(op, value)
            picked = torch.randperm(count, generator=chosen)[:positions] if count > positions else None
            rows = columns(op, given | {"weight": weight}, held[given["input"]], picked)
            rows = torch.cat([rows, rows.new_ones(*rows.shape[:2], 1)], dim=2)
            name = readers[node]
            if name not in sums:
                sums[name] = torch.zeros(rows.shape[2], rows.shape[2], dtype=torch.float64)
            sums[name] += (rows[0].mT @ rows[0]).double()
    return sums


def _reader(module: TracedModule, member: Member, gram: Tensor) -> Reader:
    """Rows of the flattened weight [K + 1, O]; the last stands for the constant, which every layer can take in."""
    weight = get_state(module, member.parameter).detach()
    taps = weight[0, 0].numel()
    flat = weight.flatten(1).mT
    rows = (torch.as_tensor(member.index)[:, :, None] * taps + torch.arange(taps)).flatten(1)
    few = float(gram[-1, -1]) < _FEW * len(gram)  # the ones are as many as the rows of X
    return Reader(gram, torch.cat([flat, flat.new_zeros(1, flat.shape[1])]), rows, _RIDGE if few else 0.0)
