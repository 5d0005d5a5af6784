"""One int8 QDQ model of many small chains: layers of every kind at sizes and densities that tell the rates apart.

Every chain begins and ends with a dense layer that stays OpenVINO's, so that what it costs to enter and leave C4 is
seen where it happens in a network: between int8 layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.ladder import ladder

_STEP = 0.05
# Channels of every input and output, and what the dense layers at the ends are called.
_OUTSIDE, HEAD, TAIL = 16, "head", "tail"


@dataclass(frozen=True)
class Probe:
    """One layer of a chain.

    Args:
        outputs: Channels it gives; for a depthwise layer as many as it reads.
        pattern: Of its zeros, "" for none.
        sparsity: Share of zeros.
        taps: Kernel height and width, padded to keep the size.
        stride: Height and width.
        depthwise: Has it one input channel per output?
        adds: How many layers back, itself included, what was read there is added to its output; 0 for nothing.
    """

    outputs: int
    pattern: str = ""
    sparsity: float = 0.0
    taps: int = 1
    stride: int = 1
    depthwise: bool = False
    adds: int = 0


@dataclass(frozen=True)
class Chain:
    """Layers one after another.

    Args:
        channels: That its first layer reads.
        side: Height and width of its input.
        layers: What it computes.
    """

    channels: int
    side: int
    layers: tuple[Probe, ...]


def _inverted(narrow: int, wide: int, side: int, sparsities: tuple[float, float], stride: int = 1) -> Chain:
    """Expansion, depthwise layer, projection; added to the input where the size allows."""
    last = Probe(narrow, "1x4", sparsities[1], adds=3 if stride == 1 else 0)
    return Chain(
        narrow, side, (Probe(wide, "1x4", sparsities[0]), Probe(wide, taps=3, stride=stride, depthwise=True), last)
    )


CHAINS = (
    Chain(64, 56, (Probe(64, "1x4", 0.9), Probe(64, "1x4", 0.8, taps=3), Probe(256, "nm64", 0.9))),
    Chain(256, 56, (Probe(64, "unstructured", 0.95), Probe(64, "1x4", 0.95, taps=3), Probe(256, "1x4", 0.9, adds=3))),
    Chain(128, 28, (Probe(512, "1x4", 0.95), Probe(128, "nm64", 0.8), Probe(128, "1x4", 0.9, taps=3, stride=2))),
    Chain(512, 28, (Probe(128, "1x4", 0.7), Probe(128, "nm64", 0.9, taps=3), Probe(512, "nm64", 0.8, adds=3))),
    Chain(256, 14, (Probe(1024, "1x4", 0.5), Probe(256, "1x4", 0.9), Probe(256, "nm64", 0.95, taps=3))),
    Chain(512, 7, (Probe(2048, "1x4", 0.9), Probe(512, "nm64", 0.9), Probe(512, "1x4", 0.95, taps=3))),
    Chain(128, 14, (Probe(512), Probe(128, "unstructured", 0.9), Probe(128, taps=3))),
    Chain(256, 14, (Probe(1024, "4x4", 0.8), Probe(256, "4x4", 0.9), Probe(256, "4x4", 0.9, taps=3))),
    Chain(64, 56, (Probe(64, "4x4", 0.8, taps=3), Probe(256, "4x4", 0.9), Probe(64, "4x4", 0.95))),
    Chain(128, 28, (Probe(512, "2x4", 0.9), Probe(128, "2x4", 0.8), Probe(128, "2x4", 0.9, taps=3))),
    _inverted(24, 144, 56, (0.8, 0.9)),
    _inverted(32, 192, 28, (0.9, 0.5), stride=2),
    _inverted(96, 576, 14, (0.7, 0.95)),
    _inverted(160, 960, 7, (0.95, 0.8)),
    Chain(32, 4, (Probe(32, "1x4", 0.8), Probe(64, "nm64", 0.9), Probe(32, "1x4", 0.5))),
)  # fmt: skip


def probe_model(chains: Sequence[Chain], *, seed: int = 0) -> onnx.ModelProto:
    """The model, one input and one output for each chain."""
    return _Building(seed).model(chains)


def probe_feeds(chains: Sequence[Chain], *, seed: int = 0) -> list[NDArray[np.float32]]:
    """One sample of noise for each input."""
    rng = np.random.default_rng([seed, 1])
    return [rng.standard_normal((1, _OUTSIDE, c.side, c.side), dtype=np.float32) for c in chains]


class _Building:
    """Nodes and tensors under construction; methods give the name of their result."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def model(self, chains: Sequence[Chain]) -> onnx.ModelProto:
        """All chains in one graph."""
        inputs, outputs = [], []
        for number, chain in enumerate(chains):
            name, shape = f"x{number}", [1, _OUTSIDE, chain.side, chain.side]
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
            last = self._chain(chain, name)
            outputs.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [1, f"c{number}", 1, 1]))
            self._node("GlobalAveragePool", [last], f"y{number}")
        graph = helper.make_graph(self._nodes, "probes", inputs, outputs, self._tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def _chain(self, chain: Chain, source: str) -> str:
        read = [self._conv(self._pair(source), f"{source}_{HEAD}", Probe(chain.channels), _OUTSIDE)]
        channels = chain.channels
        for number, probe in enumerate(chain.layers):
            name = f"{source}_{number}"
            given = self._conv(read[-1], name, probe, channels)
            if probe.adds:
                given = self._pair(self._node("Add", [given, read[-probe.adds]], f"{name}_sum"))
            read.append(given)
            channels = probe.outputs
        return self._conv(read[-1], f"{source}_{TAIL}", Probe(_OUTSIDE), channels)

    def _conv(self, source: str, name: str, probe: Probe, channels: int) -> str:
        weight = self._weight(f"{name}.weight", probe, 1 if probe.depthwise else channels)
        made = self._node(
            "Conv",
            [source, weight],
            name,
            pads=[probe.taps // 2] * 4,
            strides=[probe.stride] * 2,
            group=channels if probe.depthwise else 1,
        )
        # What is added to must not have been clipped at 0, or the kernel could not add before it rounds.
        return self._pair(made, zero=128 if probe.adds else 0)

    def _weight(self, name: str, probe: Probe, inputs: int) -> str:
        shape = (probe.outputs, inputs, probe.taps, probe.taps)
        values = (self._rng.integers(1, 128, shape) * self._rng.choice((-1, 1), shape)).astype(np.int8)
        if probe.pattern:
            saliency = torch.from_numpy(self._rng.random(shape))
            (rung,) = ladder(make_pattern(probe.pattern), saliency, [probe.sparsity])
            values *= rung.mask.numpy()
        steps = [
            self._store(f"{name}_step", np.full(probe.outputs, 0.001, np.float32)),
            self._store(f"{name}_zero", np.zeros(probe.outputs, np.int8)),
        ]
        return self._node("DequantizeLinear", [self._store(name, values), *steps], f"{name}_f", axis=0)

    def _pair(self, source: str, zero: int = 0) -> str:
        steps = [
            self._store(f"{source}_step", np.float32(_STEP)),
            self._store(f"{source}_zero", np.array(zero, np.uint8)),
        ]
        integer = self._node("QuantizeLinear", [source, *steps], f"{source}_q")
        return self._node("DequantizeLinear", [integer, *steps], f"{source}_d")

    def _store(self, name: str, value: Any) -> str:
        self._tensors.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def _node(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name
