"""Operations of a QDQ graph that our kernels can compute, in their terms: any of them, and a layer with weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

PIXELS, QUAD = 16, 4  # of one vector, as in kernels.h
NO_LIMIT = float(np.finfo(np.float32).max)  # -NO_LIMIT, NO_LIMIT: what a residual is added to has no limits

Swish = Literal["", "hard-swish", "swish"]

Floats = NDArray[np.float32]
Words = NDArray[np.int32]


@dataclass(frozen=True)
class QuantizedTensor:
    """A quantized tensor between layers; real value = (u8 - zero_point) * scale.

    Args:
        name: The integer tensor in the QDQ graph, u8 or s8.
        source: The float tensor that was quantized.
        scale: Step.
        zero_point: Of the u8 form; an s8 tensor is shifted by 128, which changes no value.
        shape: Without the batch.
        channels_last: Are the channels the last axis, as linear layers read them, or the first?
    """

    name: str
    source: str
    scale: float
    zero_point: int
    shape: tuple[int, ...]
    channels_last: bool

    @property
    def key(self) -> tuple[str, bool]:
        """Equal for activations that are one tensor in C4, too."""
        return self.name, self.channels_last

    @property
    def channels(self) -> int:
        """Its channels, or features."""
        return self.shape[-1] if self.channels_last else self.shape[0]

    @property
    def pixels(self) -> int:
        """Height x width, or tokens."""
        places = self.shape[:-1] if self.channels_last else self.shape[1:]
        return int(np.prod(places, dtype=np.int64))

    @property
    def vectors(self) -> int:
        """Vectors of 16 pixels, the last one perhaps not full."""
        return -(-self.pixels // PIXELS)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width; tokens are a column."""
        return (self.pixels, 1) if self.channels_last else (self.shape[1], self.shape[2])


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution, as ONNX has them.

    Args:
        kernel: Height, width.
        strides: Height, width.
        dilations: Height, width.
        pads: Top, left, bottom, right.
        group: Groups of channels.
    """

    kernel: tuple[int, int] = (1, 1)
    strides: tuple[int, int] = (1, 1)
    dilations: tuple[int, int] = (1, 1)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    group: int = 1


@dataclass(frozen=True, kw_only=True)
class Operation(ABC):
    """What one operation of ours computes in place of nodes of a QDQ graph.

    Args:
        name: As the user knows it.
        kind: In one word, for the report.
        x: What it reads in C4.
        y: What it gives in C4, None where its result is an ordinary tensor.
        nodes: What it replaces in the QDQ graph, the last quantization included.

    Attributes:
        op_type: Its name in our ONNX domain.
    """

    op_type: ClassVar[str]

    name: str
    kind: str
    x: QuantizedTensor
    y: QuantizedTensor | None = None
    nodes: tuple[ir.Node, ...] = field(default=(), repr=False)

    @property
    def reads(self) -> tuple[QuantizedTensor, ...]:
        """Every activation it reads."""
        return (self.x,)

    @property
    def touches(self) -> tuple[QuantizedTensor, ...]:
        """Every activation it reads or gives."""
        return self.reads if self.y is None else (*self.reads, self.y)

    @property
    @abstractmethod
    def macs(self) -> int:
        """Multiply-adds of one image where nothing is left out."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Vector instructions that multiply or add, for 16 pixels of all channels."""

    @property
    @abstractmethod
    def form(self) -> Hashable:
        """Equal for operations that take the same time if they have the same steps."""

    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """Attributes of its ONNX node."""


@dataclass(frozen=True, kw_only=True)
class Weighted(Operation):
    """A convolution or linear layer.

    Args:
        name: The weight's name without ".weight".
        kind: "conv", "depthwise" or "linear".
        weights: int8 [channels out, channels in / groups, ky, kx].
        scale: float32 [channels out], what a step of the accumulator is in the result.
        bias: int32 [channels out], -zero point * sum of weights included.
    """

    weights: NDArray[np.int8]
    scale: Floats
    bias: Words

    @property
    def pixels(self) -> int:
        """Of its output."""
        return self.x.pixels if self.y is None else self.y.pixels

    @property
    def macs(self) -> int:
        """See `Operation.macs`."""
        return int(self.weights.size * self.pixels)

    @property
    def nonzero(self) -> int:
        """Weights that are not zero."""
        return int(np.count_nonzero(self.weights))

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.nonzero / self.weights.size

    @property
    def filled(self) -> float:
        """Share of groups of four neighbouring inputs with a weight that is not zero: what a kernel computes."""
        return float(self.quads.mean())

    @cached_property
    def quads(self) -> NDArray[np.bool_]:
        """[Cout, Cin / 4, ky, kx]: has the output a weight for one of these four inputs?"""
        outputs, inputs, *taps = self.weights.shape
        padded = np.zeros((outputs, -(-inputs // QUAD) * QUAD, *taps), bool)
        padded[:, :inputs] = self.weights != 0
        return np.asarray(padded.reshape(outputs, -1, QUAD, *taps).any(axis=2))

    def shared_quads(self, rows: int) -> int:
        """Groups of four neighbouring inputs that one of `rows` neighbouring outputs has a weight for, added up."""
        found = self.quads
        padded = np.zeros((-(-len(found) // rows) * rows, *found.shape[1:]), bool)
        padded[: len(found)] = found
        return int(padded.reshape(-1, rows, *found.shape[1:]).any(axis=1).sum())


@dataclass(frozen=True, kw_only=True)
class Layer(Weighted):
    """A convolution or linear layer in C4, with what it is fused with.

    Args:
        x: What it reads.
        y: What it gives, after activation and residual addition, in steps of which its scale is.
        geometry: Sizes; a linear layer is a 1x1 convolution.
        low: Smallest output, 0..255.
        high: Largest output.
        swish: Activation before the residual addition: "hard-swish", x * clip(x / 6 + 1 / 2, 0, 1); "swish",
            x * sigmoid(x); "" for neither.
        residual: What is added, None without.
        skipped: The pair between convolution and addition, whose rounding the fusion leaves out; None without one.
    """

    op_type: ClassVar[str] = "SparseConv"

    y: QuantizedTensor
    geometry: Geometry
    low: int = 0
    high: int = 255
    swish: Swish = ""
    residual: QuantizedTensor | None = None
    skipped: QuantizedTensor | None = None

    @property
    def form(self) -> Hashable:
        """See `Operation.form`."""
        fused = (self.swish, self.residual is None)
        return self.kind, self.x.shape, self.y.shape, self.geometry, fused

    @cached_property
    def steps(self) -> int:
        """(Output channel, tap, four neighbouring inputs) with a weight that is not zero: vector multiply-adds for
        16 pixels of all output channels.
        """
        return int(self.quads.sum())

    def steps_shared_by(self, outputs: int) -> int:
        """`steps` where so many neighbouring outputs multiply every four inputs that one of them has a weight for."""
        return outputs * self.shared_quads(outputs)

    @property
    def reads(self) -> tuple[QuantizedTensor, ...]:
        """Every activation it reads."""
        return (self.x,) if self.residual is None else (self.x, self.residual)

    def attributes(self) -> dict[str, Any]:
        """Attributes of the operation SparseConv."""
        height, width = self.x.size
        found: dict[str, Any] = {
            "channels_in": self.x.channels,
            "channels_out": self.y.channels,
            "group": self.geometry.group,
            "height": height,
            "width": width,
            "kernel_shape": list(self.geometry.kernel),
            "strides": list(self.geometry.strides),
            "dilations": list(self.geometry.dilations),
            "pads": list(self.geometry.pads),
            "input_zero_point": self.x.zero_point,
            "output_zero_point": self.y.zero_point,
            "low": self.low,
            "high": self.high,
            "residual_scale": 0.0,
            "residual_zero_point": 0,
            "sum_low": -NO_LIMIT,
            "sum_high": NO_LIMIT,
            "hard_swish_slope": self.y.scale / 6 if self.swish == "hard-swish" else 0.0,
            "swish_step": self.y.scale if self.swish == "swish" else 0.0,
        }
        if self.residual is not None:
            found["residual_scale"] = self.residual.scale / self.y.scale
            found["residual_zero_point"] = self.residual.zero_point
        if self.skipped is not None:
            steps = self.skipped.scale / self.y.scale
            found["sum_low"] = -self.skipped.zero_point * steps
            found["sum_high"] = (255 - self.skipped.zero_point) * steps
        return found
