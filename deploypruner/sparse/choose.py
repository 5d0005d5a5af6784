"""Which layers go sparse: the cheapest cut between what runs in our kernels and what stays in OpenVINO.

Every matched layer is on one of two sides, everything else in the graph on OpenVINO's. A tensor costs a border where
it is written on one side and read on the other: once to leave C4 however many read it there, once to enter. That is
a minimum cut: exact, with all layers at once, whatever the shape of the graph.

    source = our kernels, sink = OpenVINO
    source -> layer   what the layer costs dense: paid if it ends on the sink's side
    layer -> sink     what it costs sparse
    layer -> leave(t) -> readers of t      border, then infinity: paid once if any reader is dense
    readers of t -> enter(t) -> writer     infinity, then border: paid once if any reader is sparse
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.sparse.cost import Costs
from deploypruner.sparse.layer import Activation, Operation
from deploypruner.sparse.onnx_graph import Graph
from deploypruner.sparse.rewrite import needed_outside

Key = tuple[str, bool]
_SOURCE, _SINK = 0, 1


@dataclass(frozen=True)
class Choice:
    """What was decided about one layer or gate.

    Args:
        layer: The operation.
        sparse: Does it run in our kernels?
        sparse_ns: Predicted there, without borders.
        dense_ns: Predicted in OpenVINO.
        reason: In words.
    """

    layer: Operation
    sparse: bool
    sparse_ns: float
    dense_ns: float
    reason: str


def choose(graph: Graph, layers: Sequence[Operation], costs: Costs) -> tuple[Choice, ...]:
    """Decide about every layer so that the predicted time of all of them and their borders is least."""
    network = _Network()
    places = {layer.name: network.node() for layer in layers}
    writers = {layer.y.key: places[layer.name] for layer in layers if layer.y is not None}
    for layer in layers:
        place = places[layer.name]
        network.edge(_SOURCE, place, costs.dense(layer))
        network.edge(place, _SINK, costs.sparse(layer))
    for activation, readers, outside in _tensors(graph, layers):
        writer = writers.get(activation.key, _SINK)
        enter = network.node()
        network.edge(enter, writer, costs.enter(activation))
        for reader in readers:
            network.edge(places[reader.name], enter, None)
        if writer != _SINK:
            leave = network.node()
            network.edge(writer, leave, costs.leave(activation))
            for reader in readers:
                network.edge(leave, places[reader.name], None)
            if outside:
                network.edge(leave, _SINK, None)
    ours = network.source_side()
    return tuple(_explained(layer, places[layer.name] in ours, costs) for layer in layers)


def _tensors(graph: Graph, layers: Sequence[Operation]) -> list[tuple[Activation, list[Operation], bool]]:
    """Every activation a layer reads or writes, the layers that read it, and whether others do."""
    readers: dict[Key, list[Operation]] = defaultdict(list)
    known: dict[Key, Activation] = {}
    for layer in layers:
        for touched in layer.touches:
            known.setdefault(touched.key, touched)
        for read in layer.reads:
            readers[read.key].append(layer)
    return [(known[key], readers[key], bool(needed_outside(graph, known[key], layers))) for key in known]


def _explained(layer: Operation, sparse: bool, costs: Costs) -> Choice:
    ours, dense = costs.sparse(layer), costs.dense(layer)
    if sparse:
        reason = "faster sparse" if ours < dense else "no faster itself, but its neighbours are in C4"
    else:
        reason = "faster dense" if dense <= ours else "faster sparse, but not by what entering and leaving C4 costs"
    return Choice(layer, sparse, ours, dense, reason)


class _Network:
    """A flow network over integer nanoseconds; `edge` with capacity None is never cut."""

    def __init__(self) -> None:
        self._edges: list[list[int]] = [[], []]  # by node: indices into the lists below
        self._to: list[int] = []
        self._free: list[int] = []
        self._total = 1

    def node(self) -> int:
        self._edges.append([])
        return len(self._edges) - 1

    def edge(self, start: int, end: int, capacity: float | None) -> None:
        if capacity is not None:
            self._total += round(capacity)
        for place, target, free in ((start, end, -1 if capacity is None else round(capacity)), (end, start, 0)):
            self._edges[place].append(len(self._to))
            self._to.append(target)
            self._free.append(free)

    def source_side(self) -> set[int]:
        """Nodes on the source's side of a minimum cut: the smallest such set, so that ties stay dense."""
        self._free = [self._total if free == -1 else free for free in self._free]
        while True:
            levels = self._levels()
            if _SINK not in levels:
                return set(levels)
            self._saturate(levels)

    def _levels(self) -> dict[int, int]:
        """Distance from the source along edges that are not full."""
        levels, queue = {_SOURCE: 0}, deque([_SOURCE])
        while queue:
            place = queue.popleft()
            for index in self._edges[place]:
                target = self._to[index]
                if self._free[index] > 0 and target not in levels:
                    levels[target] = levels[place] + 1
                    queue.append(target)
        return levels

    def _saturate(self, levels: dict[int, int]) -> None:
        """Dinic's blocking flow: push along shortest paths until none is left."""
        tried = [0] * len(self._edges)
        path: list[int] = []
        place = _SOURCE
        while True:
            if place == _SINK:
                pushed = min(self._free[index] for index in path)
                for index in path:
                    self._free[index] -= pushed
                    self._free[index ^ 1] += pushed
                path, place = [], _SOURCE
                continue
            while tried[place] < len(self._edges[place]):
                index = self._edges[place][tried[place]]
                if self._free[index] > 0 and levels.get(self._to[index]) == levels[place] + 1:
                    break
                tried[place] += 1
            else:
                if not path:
                    return
                place = self._to[path.pop() ^ 1]
                tried[place] += 1
                continue
            path.append(index)
            place = self._to[index]
