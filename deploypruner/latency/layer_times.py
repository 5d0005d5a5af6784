"""What each layer of a model takes as float and as int8, inside the network, in one runtime."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from deploypruner.device.connection import Device
from deploypruner.latency.probes import ProbeTimer, Profile
from deploypruner.onnx_graph import operand, read_graph
from deploypruner.quantize.islands import WEIGHTED
from deploypruner.records import Setting
from deploypruner.runtime import Array, NodeTime

# Short turns: where the machine changes its speed, all files see the same of it.
_ROUNDS = 2
_RESOLVED_MS, _CALLS = 0.1, 20
_INT8 = re.compile(r"\b(u8|i8|uint8|int8)\b")
# What runtimes and quantizers append to the names of values and nodes.
_APPENDED = re.compile(
    r"(/.*|_nchwc|_QuantizeLinear(_Input)?|_DequantizeLinear|_original|_quantized|_scaled_\d+|_of_\d_axes|_q|_dq)$"
)


@dataclass(frozen=True)
class LayerRun:
    """One layer as a runtime executed it.

    Args:
        ms: Of one inference, with what stands between it and the next layer: activations, sums, conversions.
        int8: Did its operation read integers?
        executed: What the runtime says it ran: "Convolution u8,i8>u8"; "" where it fused it into another layer.
    """

    ms: float
    int8: bool
    executed: str


def layer_times(
    files: Sequence[Path],
    fp32: Path,
    setting: Setting,
    *,
    feeds: Sequence[Array] | None = None,
    seconds: float = 0.15,
    device: Device | None = None,
) -> list[dict[str, LayerRun]]:
    """Time every layer of several forms of one model by the runtime's counters, in turns.

    The times of one file add up to its median latency without counters. Everything the runtime executes belongs to a
    layer: what no layer computes goes to the one before it.

    Args:
        files: Mixes of int8 and float, and the float file itself.
        fp32: The float file, whose layers' names count.
        setting: Runtime and threads.
        feeds: One array per input; random ones where None.
        seconds: For each of the two timings of a turn.
        device: The machine; this one where None.

    Returns:
        For each file, layer -> times; a layer that a runtime fused into another has none of its own. Nothing where
        the float file takes less than a tenth of a millisecond: counters are whole microseconds, and cannot tell its
        layers apart.

    Raises:
        MeasureError: A file cannot be run, or the runtime does not count the time of operations.
        DeviceError: The machine is lost.
    """
    owners = Owners(read_graph(onnx.load(fp32)).graph)
    turns: list[list[Profile]] = [[] for _ in files]
    with ProbeTimer(setting, feeds, device) as timer:
        if feeds is not None and timer.call_ms(fp32, _CALLS) < _RESOLVED_MS:
            return [{} for _ in files]
        for _ in range(_ROUNDS):
            for file, found in zip(files, turns, strict=True):
                found.append(timer.profile(file, seconds=seconds))
    return [_runs(found, owners) for found in turns]


def _runs(turns: Sequence[Profile], owners: Owners) -> dict[str, LayerRun]:
    """The least disturbed turn of every layer, scaled so that all of them add up to the latency."""
    sums = [owners.sums(profile.nodes) for profile in turns]
    least = {layer: min(found.get(layer, np.inf) for found in sums) for layer in sums[0]}
    counted = [float(np.median(profile.samples[:, 0])) for profile in turns if len(profile.samples)]
    total = sum(least.values())
    scale = min(counted) / total if counted and total else 1.0
    main = owners.executed(turns[0].nodes)
    said = {layer: main.get(layer, "") for layer in least}
    return {
        layer: LayerRun(ns * scale / 1e6, bool(_INT8.search(said[layer].partition(">")[0])), said[layer])
        for layer, ns in least.items()
    }


class Owners:
    """Tells which layer an executed operation belongs to.

    Args:
        graph: Of the float file, with inferred shapes.

    Attributes:
        layers: Names, in order.
        borders: (layer, a layer that reads what comes of it) -> numbers that pass, of one sample.
    """

    def __init__(self, graph: ir.Graph) -> None:
        layers = [node for node in graph if node.op_type in WEIGHTED]
        self.layers = tuple(str(node.name) for node in layers)
        self._without_weights = {str(node.name) for node in layers if not operand(node, 1).is_initializer()}
        self._owner: dict[str, str] = {}
        made: dict[ir.Value | None, str] = {}
        for node in graph:
            before = [made[value] for value in node.inputs if made.get(value)]
            name = str(node.name) if node.op_type in WEIGHTED else max(before, key=self.layers.index, default="")
            made.update(dict.fromkeys(node.outputs, name))
            self._owner.update({str(key): name for key in (node.name, *(v.name for v in node.outputs)) if key})
        for node in layers:
            for value in node.inputs[1:]:
                if value is not None and value.is_initializer():
                    self._owner[str(value.name)] = str(node.name)
        self.borders = _borders(graph, made)
        first = self.layers[0] if self.layers else ""
        self._owner.update({name: first for name, owner in self._owner.items() if not owner})
        self._owner.update({str(value.name): first for value in graph.inputs})

    def sums(self, nodes: Sequence[NodeTime]) -> dict[str, float]:
        """Layer -> nanoseconds of all that belongs to it."""
        found = defaultdict[str, float](float)
        last = self.layers[0] if self.layers else ""
        for node in nodes:
            last = self.of(node) or last
            found[last] += node.ns
        return dict(found)

    def executed(self, nodes: Sequence[NodeTime]) -> dict[str, str]:
        """Layer -> kind and precisions of the operation that computes it."""
        found: dict[str, tuple[float, str]] = {}
        for node in nodes:
            # OpenVINO computes both products of attention, and the softmax between them, in one operation.
            for product in self._without_weights & set(map(self._by_name, node.origins)):
                found.setdefault(product, (node.ns, f"{node.kind} {node.precisions}"))
            layer = self.of(node)
            # A product without weights may belong to it as well, and takes less.
            if layer and _computes(node.kind) and (layer not in found or node.ns > found[layer][0]):
                found[layer] = node.ns, f"{node.kind} {node.precisions}"
        return {layer: text for layer, (_, text) in found.items()}

    def of(self, node: NodeTime) -> str:
        """The layer that an executed operation belongs to; "" where its name says nothing."""
        return self._named(node) or self._by_name(node.name)

    def _named(self, node: NodeTime) -> str:
        """By the file's nodes in it: a layer itself before what only belongs to one."""
        stems = [origin.partition("/")[0] for origin in node.origins]
        layer = next((stem for stem in stems if stem in self.layers), "")
        return layer or next(filter(None, map(self._by_name, node.origins)), "")

    def _by_name(self, name: str) -> str:
        """By the runtime's own name: of a node or value of the file with more behind it, or "what after that"."""
        for text in name.split(" after "):
            while text and text not in self._owner:
                shorter = _APPENDED.sub("", text)
                text = "" if shorter == text else shorter
            if text:
                return self._owner[text]
        return ""


def _borders(graph: ir.Graph, made: dict[ir.Value | None, str]) -> dict[tuple[str, str], int]:
    """Layers next to each other, and the numbers that a conversion between them is of."""
    found = dict[tuple[str, str], int]()
    for node in graph:
        to = made[node.outputs[0]]
        for value in node.inputs:
            before = made.get(value, "")
            if value is not None and before and before != to:
                known = [size for size in (value.shape or ())[1:] if isinstance(size, int)]
                found[before, to] = max(found.get((before, to), 0), int(np.prod(known)))
    return found


def _computes(kind: str) -> bool:
    """Is it a convolution or a product, in any runtime's words?"""
    return any(word in kind for word in ("Conv", "Gemm", "MatMul", "FullyConnected", "Deconvolution"))
