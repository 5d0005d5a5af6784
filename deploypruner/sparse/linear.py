"""Linear layers of one pixel, floats in and out: classifiers, and the small layers of squeeze and excitation.

    [N, I] | [N, I, 1, 1] -> pair -> Gemm | MatMul | 1x1 Conv -> [bias addition] -> [an activation] -> float

One operation reads what is quantized, not the pair, and gives what follows in float, so that nothing stands before or
behind it. Our layout has sixteen pixels side by side: of one it would compute fifteen for nothing.
"""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import operand, readers, sizes
from deploypruner.sparse.epilogue import Tail, with_activation, with_bias
from deploypruner.sparse.layer import NO_LIMIT, QuantizedTensor, Weighted
from deploypruner.sparse.qdq import NoMatch

# As in kernels.h: rows of a step, and the activations by number.
ROWS = 16
ACTIVATIONS = ("", "clip", "hard-sigmoid", "hard-swish", "sigmoid", "swish")


@dataclass(frozen=True, kw_only=True)
class LinearLayer(Weighted):
    """A linear layer of one pixel.

    Args:
        x: What its input is quantized to inside.
        restored: Float tensor that the pair gives.
        result: Float tensor it gives.
        activation: One of `ACTIVATIONS`.
        low, high: Limits of "clip".
        slope: Of the hard ones.
    """

    op_type: ClassVar[str] = "SparseLinear"

    restored: str
    result: str
    activation: str = ""
    low: float = -NO_LIMIT
    high: float = NO_LIMIT
    slope: float = 0.0

    @property
    def reads(self) -> tuple[QuantizedTensor, ...]:
        """Nothing in C4."""
        return ()

    @property
    def form(self) -> Hashable:
        """See `Operation.form`."""
        return self.op_type, self.weights.shape, self.activation

    @cached_property
    def steps(self) -> int:
        """See `Operation.steps`; of its one pixel."""
        return self.shared_quads(ROWS)

    def attributes(self) -> dict[str, Any]:
        """See `Operation.attributes`."""
        return {
            "channels_in": self.x.channels,
            "channels_out": len(self.weights),
            "step": self.x.scale,
            "zero_point": self.x.zero_point,
            "activation": ACTIVATIONS.index(self.activation),
            "low": self.low,
            "high": self.high,
            "slope": self.slope,
        }


def is_vector(node: ir.Node, x: QuantizedTensor) -> bool:
    """Does a layer read one pixel, its channels in the second dimension?"""
    return x.pixels == 1 and sizes(operand(node, 0)) is not None and (len(x.shape) == 1 or not x.channels_last)


def follow_float(node: ir.Node) -> tuple[Tail, dict[str, Any]]:
    """What stands between a layer and its float result, and the fields of `LinearLayer` that say so."""
    tail = Tail(node.outputs[0], (node,))
    # What has several readers, or is an output, is given as it is.
    with suppress(NoMatch):
        tail = with_bias(tail, node)
    with suppress(NoMatch):
        tail = with_activation(tail)
    if tail.swish:
        return tail, {"activation": tail.swish, "slope": 1 / 6 if tail.swish == "hard-swish" else 0.0}
    if tail.clips:
        limits = np.clip([tail.least, tail.most], -NO_LIMIT, NO_LIMIT).tolist()
        return tail, {"activation": "clip", "low": limits[0], "high": limits[1]}
    return _with_gate(tail)


def _with_gate(tail: Tail) -> tuple[Tail, dict[str, Any]]:
    found = [] if tail.end.is_graph_output() else readers(tail.end)
    kinds = [reader.op_type for reader in found]
    if kinds == ["Sigmoid"]:
        return tail.past(found[0]), {"activation": "sigmoid"}
    if kinds == ["HardSigmoid"] and found[0].attributes.get_float("beta", 0.5) == 0.5:
        slope = found[0].attributes.get_float("alpha", 0.2)
        return tail.past(found[0]), {"activation": "hard-sigmoid", "slope": slope}
    return tail, {}
