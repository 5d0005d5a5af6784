"""What a layer costs, dense in OpenVINO or sparse in our kernels: nanoseconds from a handful of rates.

    sparse   call + N * (step * S * V + requant * (Q + residual Q) * V)
    dense    call + N * (mac * MACs + byte * (bytes in + bytes out))
    border   call + N * move * bytes                     (u8 channels-last to C4, or back, transposition included)

with N images of a batch, V vectors of 16 output pixels, Q output channels / 4, S vector multiply-adds per vector of
output pixels: one for every (output channel, tap, four neighbouring inputs) that has a weight.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from deploypruner.sparse.layer import QUAD, Activation, Layer


class Costs(ABC):
    """Nanoseconds of layers and borders, on one device, for one batch and number of threads.

    Attributes:
        source: Where they come from, in words.
    """

    source: ClassVar[str]

    @abstractmethod
    def sparse(self, layer: Layer) -> float:
        """Of a layer in our kernels."""

    @abstractmethod
    def dense(self, layer: Layer) -> float:
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
    mac: float = 0.0055
    depthwise_mac: float = 0.045
    byte: float = 0.02
    move: float = 0.10
    images: int = 1

    def sparse(self, layer: Layer) -> float:
        """See `Costs.sparse`."""
        quads = -(-layer.y.channels // QUAD) * (1 if layer.residual is None else 1.3)
        return self.call + self.images * layer.y.vectors * (self.step * layer.steps + self.requant * quads)

    def dense(self, layer: Layer) -> float:
        """See `Costs.dense`."""
        macs = layer.weights.size * layer.y.pixels
        moved = sum(a.channels * a.pixels for a in (layer.y, *layer.reads))
        rate = self.depthwise_mac if layer.kind == "depthwise" else self.mac
        return self.call + self.images * (rate * macs + self.byte * moved)

    def enter(self, activation: Activation) -> float:
        """See `Costs.enter`."""
        return self.call + self.images * self.move * activation.channels * activation.pixels

    def leave(self, activation: Activation) -> float:
        """See `Costs.leave`."""
        return self.enter(activation)
