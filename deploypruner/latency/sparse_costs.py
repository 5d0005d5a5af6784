"""What every layer of a network costs dense and sparse, measured: OpenVINO's counters of the two extreme models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploypruner.device.connection import Device
from deploypruner.measure.process import Worker
from deploypruner.measure.profiling import from_lists
from deploypruner.records import Artifact
from deploypruner.runtime import Array, NodeTime
from deploypruner.scratch import scratch
from deploypruner.sparse.cost import Costs, Rates
from deploypruner.sparse.layer import Operation, QuantizedTensor
from deploypruner.sparse.rewrite import c4_name

# Short turns: where the machine changes its speed, both models see the same of it.
_ROUNDS, _CALLS = 12, 2
# Layers of one shape whose vector multiply-adds differ by less take the same time.
_ALIKE = 0.1
_RUNTIME = "openvino"
_REST = "/rest"  # no layer is called so


@dataclass(frozen=True)
class MeasuredCosts(Costs):
    """Nanoseconds of each layer, from the model in which none is sparse and the one in which all are.

    Args:
        sparse_ns: Layer -> of its operation.
        dense_ns: Layer -> of what OpenVINO made of it; a layer it fused into another has none of its own.
        enter_ns: C4 name -> of entering.
        leave_ns: C4 name -> of leaving.
        rest_ns: Of everything in the dense model that is part of no layer.
        rates: For what neither model shows.
    """

    sparse_ns: Mapping[str, float]
    dense_ns: Mapping[str, float]
    enter_ns: Mapping[str, float] = field(default_factory=dict)
    leave_ns: Mapping[str, float] = field(default_factory=dict)
    rest_ns: float = 0.0
    rates: Rates = field(default_factory=Rates)
    source: str = "OpenVINO's counters on this machine"

    def sparse(self, layer: Operation) -> float:
        """See `Costs.sparse`."""
        return self.sparse_ns.get(layer.name, self.rates.sparse(layer))

    def dense(self, layer: Operation) -> float:
        """See `Costs.dense`."""
        return self.dense_ns.get(layer.name, self.rates.dense(layer))

    def enter(self, activation: QuantizedTensor) -> float:
        """See `Costs.enter`."""
        return self.enter_ns.get(c4_name(activation), self.rates.enter(activation))

    def leave(self, activation: QuantizedTensor) -> float:
        """See `Costs.leave`."""
        return self.leave_ns.get(c4_name(activation), self.rates.leave(activation))


def measure_costs(
    dense: Path,
    sparse: Path,
    layers: Sequence[Operation],
    *,
    feeds: Sequence[Array],
    threads: int,
    rates: Rates | None = None,
    device: Device | None = None,
) -> MeasuredCosts:
    """Time the operations of both models in alternation; of several rounds the least disturbed one counts.

    Args:
        dense: The QDQ file.
        sparse: The same with every one of `layers` sparse.
        layers: From `sparsify`.
        feeds: One array per input, as many images as the model is to run with: times are those of a whole batch.
        threads: Threads of the runtime.
        rates: For what is in neither model, such as borders between layers that are all sparse here or all dense.
        device: The machine; this one where None.

    Raises:
        MeasureError: A file cannot be loaded, or our library is not there, or does not fit.
        DeviceError: The machine is lost.
    """
    counted = _counted(dense, sparse, feeds=feeds, threads=threads, device=device)
    whose = (_Dense(layers).shares, _Sparse(layers).shares)
    alone, times = (
        _least([_added_up(from_lists(turns[form]), whose[form]) for turns in counted]) for form in range(len(whose))
    )
    borders = {activation.key: activation for layer in layers for activation in layer.touches}
    entered = {c4_name(a): times[f"{c4_name(a)}_enter"] for a in borders.values() if f"{c4_name(a)}_enter" in times}
    left = {c4_name(a): times[f"{c4_name(a)}_leave"] for a in borders.values() if f"{c4_name(a)}_leave" in times}
    return MeasuredCosts(
        sparse_ns=_undisturbed(layers, times, alike=_ALIKE),
        dense_ns=_undisturbed(layers, alone, alike=np.inf),
        enter_ns=entered,
        leave_ns=left,
        rest_ns=alone.get(_REST, 0.0),
        rates=replace(rates or Rates(), images=feeds[0].shape[0] if feeds[0].ndim else 1),
        source=f"OpenVINO's counters on {'this machine' if device is None else device.transport.name}",
    )


def _counted(
    dense: Path, sparse: Path, *, feeds: Sequence[Array], threads: int, device: Device | None
) -> list[list[list[list[Any]]]]:
    """For each round, the nodes of both models as `profiling.as_lists` makes them."""
    with ExitStack() as stack:
        saved = stack.enter_context(scratch()) / "feeds.npz"
        np.savez(saved, *feeds)
        device = device or stack.enter_context(Device())
        artifact = Artifact("layers", sparse, "onnx", "int8")
        worker = stack.enter_context(Worker(artifact, _RUNTIME, threads=threads, device=device))
        cores, _ = device.pick_cores(threads)

        def ask() -> dict[str, Any]:
            worker.ask(do="load", runtime=_RUNTIME)
            if cores:
                worker.ask(do="pin", cores=cores)
            return worker.ask(
                **{"do": "count", "dense": dense, "sparse": sparse, "feeds": saved},
                **{"threads": threads, "rounds": _ROUNDS, "calls": _CALLS},
            )

        rounds: list[list[list[list[Any]]]] = device.lasting(ask, again=worker.revive)["rounds"]
        return rounds


class _Dense:
    """Tells whose time an operation of the dense model is, by the file's nodes that OpenVINO fused into it."""

    def __init__(self, layers: Sequence[Operation]) -> None:
        self._macs = {layer.name: layer.macs for layer in layers}
        self._main: dict[str, str] = {}
        self._rest: dict[str, str] = {}
        for layer in layers:
            for node in layer.nodes:
                into = self._main if node is layer.nodes[0] else self._rest
                into.update({name: layer.name for name in (node.name, node.outputs[0].name) if name})

    def shares(self, node: NodeTime) -> Mapping[str, float]:
        """Layer -> share of the operation's time."""
        origins = [origin.removesuffix("/WithoutBiases") for origin in (node.name, *node.origins)]
        for known in (self._main, self._rest):
            owners = list(dict.fromkeys(known[origin] for origin in origins if origin in known))
            if owners:
                # Two convolutions in one operation share its time by their multiply-adds.
                total = sum(self._macs[owner] for owner in owners)
                return {owner: self._macs[owner] / total for owner in owners}
        return {_REST: 1.0}


class _Sparse:
    """Tells whose time an operation of the sparse model is, by the names `rewrite` gives."""

    def __init__(self, layers: Sequence[Operation]) -> None:
        self._layers = {layer.name for layer in layers}
        stems = {c4_name(activation) for layer in layers for activation in layer.touches}
        self._borders = {f"{stem}_{way}" for stem in stems for way in ("enter", "leave")}

    def shares(self, node: NodeTime) -> Mapping[str, float]:
        """Layer or border -> share of the operation's time."""
        for origin in (node.name, *node.origins):
            if origin in self._layers:
                return {origin: 1.0}
        for origin in (node.name, *node.origins):
            border = _border(origin, self._borders)
            if border:
                return {border: 1.0}
        return {}


def _border(name: str, borders: Collection[str]) -> str:
    for way in ("_enter", "_leave"):
        place = name.rfind(way)
        if place >= 0 and name[: place + len(way)] in borders:
            return name[: place + len(way)]
    return ""


def _undisturbed(layers: Sequence[Operation], times: Mapping[str, float], *, alike: float) -> dict[str, float]:
    """The least time among layers of the same shape and about as many steps: a disturbance hits one of them."""
    groups: dict[Hashable, list[Operation]] = defaultdict(list)

    def near(one: Operation, other: Operation) -> bool:
        return abs(one.steps - other.steps) <= alike * max(one.steps, 1)  # a layer of zeros has no steps at all

    for layer in layers:
        if layer.name in times:
            groups[layer.form].append(layer)
    return {
        layer.name: min(times[twin.name] for twin in twins if near(layer, twin))
        for twins in groups.values()
        for layer in twins
    }


def _added_up(nodes: Iterable[NodeTime], shares: Callable[[NodeTime], Mapping[str, float]]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for node in nodes:
        for name, share in shares(node).items():
            found[name] += share * node.ns
    return dict(found)


def _least(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The least time of each name over all rounds."""
    return {name: min(found[name] for found in rounds if name in found) for name in rounds[0]}
