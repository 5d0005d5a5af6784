"""What a layer costs, dense in OpenVINO or sparse in our kernels: nanoseconds from a handful of rates.

    sparse   call + N * (step * S * V + requant * Q * V + residual * Q * V (where there is one) + copy * bytes in)
    dense    dense_call + N * (mac * MACs + byte * (bytes in + bytes out))
    gate     call + N * gate * Q * V                     (half of squeeze and excitation: a mean, or a product)
    linear   call + N * 4 * shared * S                   (of one pixel; S steps of sixteen outputs and four inputs)
    border   border_call + N * move * bytes              (u8 channels-last to C4, or back, transposition included)

with N images of a batch, V vectors of 16 output pixels, Q output channels / 4, S vector multiply-adds per vector of
output pixels: one for every (output channel, tap, four neighbouring inputs) that has a weight. Rows that share what
they load (dense and depthwise layers, patterns 4x4 and 2x4) have a rate of their own in place of `step`; bytes are
copied where the kernel is no plain 1x1.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from deploypruner.sparse.bindings import Conv, ConvShape
from deploypruner.sparse.layer import QUAD, Layer, Operation, QuantizedTensor
from deploypruner.sparse.linear import LinearLayer

Counts = dict[str, float]

# What rows may have to multiply more where two or four of them share what they load: `kOwnLoad` of `pack.cpp`.
_OWN_LOAD = 1.2
# A step of a linear layer of one pixel reads 64 bytes of weights, in multiply-adds of shared rows.
_LINEAR_STEP = 4


class Costs(ABC):
    """Nanoseconds of layers and borders, on one device, for one batch and number of threads.

    Attributes:
        source: Where they come from, in words.
    """

    source: str

    @abstractmethod
    def sparse(self, layer: Operation) -> float:
        """Of a layer in our kernels."""

    @abstractmethod
    def dense(self, layer: Operation) -> float:
        """Of a layer in OpenVINO, zeros included."""

    @abstractmethod
    def enter(self, activation: QuantizedTensor) -> float:
        """Of bringing an activation into C4."""

    @abstractmethod
    def leave(self, activation: QuantizedTensor) -> float:
        """Of bringing an activation back out of C4."""


@dataclass(frozen=True)
class Rates(Costs):
    """The formulas of this module. Nanoseconds; `latency.kernel_rates` finds those of a machine.

    The defaults are those of one thread of a 2.5 GHz Xeon with AVX-512 VNNI.

    Args:
        call: Of a layer in our kernels, whatever its size.
        step: Of one vector multiply-add.
        shared: Of one where neighbouring rows share what they load.
        requant: Of rounding four channels of 16 pixels.
        residual: Of adding four channels of 16 pixels.
        copy: Of a byte that is copied before a kernel other than a plain 1x1.
        dense_call: Of a dense layer.
        mac: Of one multiply-add of a dense convolution.
        depthwise_mac: Of one multiply-add of a dense depthwise convolution.
        byte: Of one byte that a dense convolution reads or writes.
        border_call: Of changing the layout of an activation.
        move: Of one byte of it.
        gate: Of a mean or product of four channels of 16 pixels.
        images: Of a batch.
        packed: Are multiply-adds counted as the library packs them? Needed where it packs windows.
        source: Where they come from, in words.
    """

    call: float = 2500.0
    step: float = 0.40
    shared: float = 0.40
    requant: float = 10.0
    residual: float = 3.0
    copy: float = 0.0
    dense_call: float = 2500.0
    mac: float = 0.0055
    depthwise_mac: float = 0.045
    byte: float = 0.02
    border_call: float = 2500.0
    move: float = 0.10
    gate: float = 6.0
    images: int = 1
    packed: bool = False
    source: str = "a formula, not measured on this machine"

    def sparse(self, layer: Operation) -> float:
        """See `Costs.sparse`."""
        if isinstance(layer, LinearLayer):
            return self.call + self.images * _LINEAR_STEP * self.shared * layer.steps
        if not isinstance(layer, Layer):
            return self.call + self.images * self.gate * layer.steps * layer.x.vectors
        return self._sum(sparse_counts(layer, packed=self.packed), once="call")

    def dense(self, layer: Operation) -> float:
        """See `Costs.dense`."""
        return self._sum(dense_counts(layer), once="dense_call")

    def enter(self, activation: QuantizedTensor) -> float:
        """See `Costs.enter`."""
        return self._sum(border_counts(activation), once="border_call")

    def leave(self, activation: QuantizedTensor) -> float:
        """See `Costs.leave`."""
        return self.enter(activation)

    def _sum(self, counts: Counts, *, once: str) -> float:
        """What all is paid together; everything but a call is paid for every image."""
        rest = sum(getattr(self, name) * count for name, count in counts.items() if name != once)
        return float(getattr(self, once) + self.images * rest)


def sparse_counts(layer: Layer, *, packed: bool = False) -> Counts:
    """Name of a rate -> how often a layer pays it in our kernels, for one image."""
    vectors, quads = layer.y.vectors, -(-layer.y.channels // QUAD)
    together = layer.steps_shared_by(QUAD)
    if layer.kind != "depthwise":
        together = min(together, layer.steps_shared_by(2))
    shares = layer.kind == "depthwise" or together <= _OWN_LOAD * layer.steps
    own = together if shares else layer.steps
    steps = (_packed_steps(layer) if packed else own) * vectors
    g = layer.geometry
    plain = g.kernel == g.strides == (1, 1) and not any(g.pads)
    return {
        "call": 1,
        "step": 0 if shares else steps,
        "shared": steps if shares else 0,
        "requant": quads * vectors,
        "residual": 0 if layer.residual is None else quads * vectors,
        "copy": 0 if plain else layer.x.channels * layer.x.pixels,
    }


def dense_counts(layer: Operation) -> Counts:
    """Name of a rate -> how often an operation pays it in OpenVINO, for one image."""
    macs = layer.macs
    depthwise = layer.kind not in ("conv", "linear")  # a mean or a product shares as little as a depthwise layer
    return {
        "dense_call": 1,
        "mac": 0 if depthwise else macs,
        "depthwise_mac": macs if depthwise else 0,
        "byte": sum(a.channels * a.pixels for a in layer.touches),
    }


def border_counts(activation: QuantizedTensor) -> Counts:
    """Name of a rate -> how often entering or leaving C4 pays it, for one image."""
    return {"border_call": 1, "move": activation.channels * activation.pixels}


def _packed_steps(layer: Layer) -> int:
    """Vector multiply-adds for 16 pixels, as the library packs them for this CPU."""
    height, width = layer.x.size
    g = layer.geometry
    shape = ConvShape(
        channels_in=layer.x.channels,
        channels_out=layer.y.channels,
        height=height,
        width=width,
        groups=g.group,
        kernel=g.kernel,
        stride=g.strides,
        dilation=g.dilations,
        pads=g.pads,
    )
    with Conv(shape, layer.weights, layer.scale, layer.bias) as conv:
        return conv.steps
