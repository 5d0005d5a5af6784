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

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from deploypruner.sparse.cost import Costs
from deploypruner.sparse.cut import SINK, SOURCE, Network
from deploypruner.sparse.layer import Operation, QuantizedTensor
from deploypruner.sparse.rewrite import needed_outside

Key = tuple[str, bool]


@dataclass(frozen=True)
class LayerDecision:
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


class Sides:
    """The least predicted time of all layers and their borders, whatever each costs in our kernels.

    Args:
        graph: The QDQ graph.
        layers: Matched in it.
        costs: Of layers and borders.
    """

    def __init__(self, graph: ir.Graph, layers: Sequence[Operation], costs: Costs) -> None:
        self._network = network = Network()
        self._ours: list[bool] | None = None
        places = {layer.name: network.node() for layer in layers}
        writers = {layer.y.key: places[layer.name] for layer in layers if layer.y is not None}
        self._places = [places[layer.name] for layer in layers]
        self._dense = [network.edge(SOURCE, places[layer.name], costs.dense(layer)) for layer in layers]
        self._sparse = [network.edge(places[layer.name], SINK, costs.sparse(layer)) for layer in layers]
        for activation, readers, outside in _tensors(graph, layers):
            writer = writers.get(activation.key, SINK)
            enter = network.node()
            network.edge(enter, writer, costs.enter(activation))
            for reader in readers:
                network.edge(places[reader.name], enter, None)
            if writer != SINK:
                leave = network.node()
                network.edge(writer, leave, costs.leave(activation))
                for reader in readers:
                    network.edge(leave, places[reader.name], None)
                if outside:
                    network.edge(leave, SINK, None)

    @property
    def ns(self) -> int:
        """Of the best sides."""
        return self._network.value()

    def price(self, number: int, ns: float) -> None:
        """Let layer `number` cost `ns` in our kernels."""
        self._network.change(self._sparse[number], ns)
        self._ours = None

    def with_dense(self, number: int) -> int:
        """Nanoseconds of the best sides with layer `number` in OpenVINO."""
        return self.ns if not self.sparse()[number] else self._network.value(keep=self._sparse[number])

    def with_sparse(self, number: int) -> int:
        """Nanoseconds of the best sides with layer `number` in our kernels, at its price."""
        return self.ns if self.sparse()[number] else self._network.value(keep=self._dense[number])

    def sparse(self) -> list[bool]:
        """Is each layer in our kernels? The fewest of all best sides, so that ties stay dense."""
        if self._ours is None:
            ours = self._network.source_side()
            self._ours = [place in ours for place in self._places]
        return self._ours


def choose(graph: ir.Graph, layers: Sequence[Operation], costs: Costs) -> tuple[LayerDecision, ...]:
    """Decide about every layer so that the predicted time of all of them and their borders is least."""
    sides = Sides(graph, layers, costs).sparse()
    return tuple(_explained(layer, ours, costs) for layer, ours in zip(layers, sides, strict=True))


def _tensors(graph: ir.Graph, layers: Sequence[Operation]) -> list[tuple[QuantizedTensor, list[Operation], bool]]:
    """Every activation a layer reads or writes, the layers that read it, and whether others do."""
    readers: dict[Key, list[Operation]] = defaultdict(list)
    known: dict[Key, QuantizedTensor] = {}
    for layer in layers:
        for touched in layer.touches:
            known.setdefault(touched.key, touched)
        for read in layer.reads:
            readers[read.key].append(layer)
    values = ir.convenience.create_value_mapping(graph, include_subgraphs=False)
    return [
        (tensor, readers[key], bool(needed_outside(values[tensor.name], tensor, layers)))
        for key, tensor in known.items()
    ]


def _explained(layer: Operation, sparse: bool, costs: Costs) -> LayerDecision:
    ours, dense = costs.sparse(layer), costs.dense(layer)
    if sparse:
        reason = "faster sparse" if ours < dense else "no faster itself, but its neighbours are in C4"
    else:
        reason = "faster dense" if dense <= ours else "faster sparse, but not by what entering and leaving C4 costs"
    return LayerDecision(layer, sparse, ours, dense, reason)
