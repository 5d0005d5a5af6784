"""What a layer costs, dense in OpenVINO or sparse in our kernels: nanoseconds from a handful of rates.

    sparse   call + N * (step * S * V + requant * (Q + residual Q) * V)
    dense    call + N * (mac * MACs + byte * (bytes in + bytes out))
    gate     call + N * gate * Q * V                     (half of squeeze and excitation: a mean, or a product)
    border   call + N * move * bytes                     (u8 channels-last to C4, or back, transposition included)

with N images of a batch, V vectors of 16 output pixels, Q output channels / 4, S vector multiply-adds per vector of
output pixels: one for every (output channel, tap, four neighbouring inputs) that has a weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from deploypruner.sparse.layer import QUAD, Activation, Layer, Operation


class Costs(ABC):
    """Nanoseconds of layers and borders, on one device, for one batch and number of threads.

    Attributes:
        source: Where they come from, in words.
    """

    source: ClassVar[str]

    @abstractmethod
    def sparse(self, layer: Operation) -> float:
        """Of a layer in our kernels."""

    @abstractmethod
    def dense(self, layer: Operation) -> float:
        """Of a layer in OpenVINO, zeros included."""

    @abstractmethod
    def enter(self, activation: Activation) -> float:
        """Of bringing an activation into C4."""

    @abstractmethod
    def leave(self, activation: Activation) -> float:
        """Of bringing an activation back out of C4."""


@dataclass(frozen=True)
class Rates(Costs):
    """The formulas of this module, for layers that nobody has measured.

    The defaults are those of one thread of a 2.5 GHz Xeon with AVX-512 VNNI.

    Args:
        call: Of any operation.
        step: Of one vector multiply-add.
        requant: Of rounding four channels of 16 pixels.
        gate: Of a mean or product of four channels of 16 pixels.
        mac: Of one multiply-add of a dense convolution.
        depthwise_mac: Of one multiply-add of a dense depthwise convolution.
        byte: Of one byte that a dense convolution reads or writes.
        move: Of one byte of an activation that changes its layout.
        images: Of a batch.
    """

    source: ClassVar[str] = "a formula, not measured on this machine"

    call: float = 2500.0
    step: float = 0.40
    requant: float = 10.0
    gate: float = 6.0
    mac: float = 0.0055
    depthwise_mac: float = 0.045
    byte: float = 0.02
    move: float = 0.10
    images: int = 1

    def sparse(self, layer: Operation) -> float:
        """See `Costs.sparse`."""
        if not isinstance(layer, Layer):
            return self.call + self.images * self.gate * layer.steps * layer.x.vectors
        quads = -(-layer.y.channels // QUAD) * (1 if layer.residual is None else 1.3)
        return self.call + self.images * layer.y.vectors * (self.step * layer.steps + self.requant * quads)

    def dense(self, layer: Operation) -> float:
        """See `Costs.dense`."""
        moved = sum(touched.channels * touched.pixels for touched in layer.touches)
        rate = self.mac if layer.kind in ("conv", "linear") else self.depthwise_mac
        return self.call + self.images * (rate * layer.macs + self.byte * moved)

    def enter(self, activation: Activation) -> float:
        """See `Costs.enter`."""
        return self.call + self.images * self.move * activation.channels * activation.pixels

    def leave(self, activation: Activation) -> float:
        """See `Costs.leave`."""
        return self.enter(activation)
