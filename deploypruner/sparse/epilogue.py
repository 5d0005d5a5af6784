"""What follows a convolution or linear layer up to the next quantization, as far as one kernel computes all of it.

    [bias addition] -> [relu | clip | hard-swish | swish] -> QuantizeLinear
    [bias addition] -> [hard-swish | swish] -> [pair] -> residual addition -> [relu | clip] -> QuantizeLinear

The pair before a residual addition is skipped but for its limits: the kernel adds before it rounds.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from deploypruner.onnx_graph import constant, made_by, operand, optional, readers, scalar, sizes
from deploypruner.sparse.layer import QuantizedTensor, Swish
from deploypruner.sparse.qdq import NoMatch, read_activation, read_quantize

# A swish in one node, and what it is a product with otherwise.
_WHOLE: dict[str, Swish] = {"HardSwish": "hard-swish", "Swish": "swish"}
_GATES: dict[str, Swish] = {"HardSigmoid": "hard-swish", "Sigmoid": "swish"}


@dataclass(frozen=True)
class Tail:
    """Nodes after a layer, and what they do.

    Args:
        end: Float tensor reached.
        nodes: Passed on the way.
        bias: A constant that is added, None without.
        swish: As `Layer.swish`.
        least: Relu or clip, in real numbers.
        most: Clip.
        residual: What is added.
        skipped: The pair that is skipped before the addition.
        y: The quantized end, None as long as it is not reached.
    """

    end: ir.Value
    nodes: tuple[ir.Node, ...]
    bias: ir.Value | None = None
    swish: Swish = ""
    least: float = -np.inf
    most: float = np.inf
    residual: QuantizedTensor | None = None
    skipped: QuantizedTensor | None = None
    y: QuantizedTensor | None = None

    def past(self, *nodes: ir.Node) -> Tail:
        """The same after `nodes`, the last of which gives one tensor."""
        return replace(self, end=nodes[-1].outputs[0], nodes=(*self.nodes, *nodes))

    @property
    def clips(self) -> bool:
        """Is there a relu or clip?"""
        return bool(self.least > -np.inf or self.most < np.inf)


def follow(node: ir.Node, *, channels_last: bool, taken: Collection[ir.Value]) -> Tail:
    """Everything after `node` that one kernel computes.

    Args:
        node: Conv, Gemm or MatMul.
        channels_last: As `Activation.channels_last`.
        taken: Outputs of additions that belong to other layers.

    Raises:
        NoMatch: No quantization is reached.
    """
    tail = with_activation(with_bias(Tail(node.outputs[0], (node,)), node))
    plain: Tail | None = None
    reader = _only_reader(tail.end)
    if reader.op_type == "QuantizeLinear":
        plain = _end(tail, reader, channels_last)
    try:
        return _with_residual(tail, channels_last=channels_last, taken=taken)
    except NoMatch:
        if plain is None:
            raise
        return plain


def with_bias(tail: Tail, node: ir.Node) -> Tail:
    """Pass the addition of a constant after a MatMul."""
    if node.op_type != "MatMul":
        return tail
    reader = _only_reader(tail.end)
    if reader.op_type != "Add":
        return tail
    other = _other(reader, tail.end)
    return replace(tail.past(reader), bias=other) if _is_stored(other) else tail


def _is_stored(value: ir.Value) -> bool:
    restore = made_by(value, "DequantizeLinear")
    return constant(value if restore is None else operand(restore, 0)) is not None


def with_activation(tail: Tail) -> Tail:
    """Pass relu, clip or swish."""
    kind, nodes = _swish(tail.end)
    if kind:
        return replace(tail.past(*nodes), swish=kind)
    reader = _only_reader(tail.end)
    if reader.op_type == "Relu":
        return replace(tail.past(reader), least=0.0)
    if reader.op_type == "Clip":
        least, most = _clip_bounds(reader)
        return replace(tail.past(reader), least=least, most=most)
    return tail


def _swish(value: ir.Value) -> tuple[Swish, tuple[ir.Node, ...]]:
    """Which swish follows, and its nodes: one, or a product of x with clip(x / 6 + 1 / 2, 0, 1) or sigmoid(x)."""
    found = readers(value)
    if value.is_graph_output():
        return "", ()
    if len(found) == 1 and found[0].op_type in _WHOLE:
        # Of Swish the sigmoid may have a factor.
        plain = found[0].attributes.get_float("alpha", 1.0) == 1
        return (_WHOLE[found[0].op_type], (found[0],)) if plain else ("", ())
    gates = [reader for reader in found if reader.op_type in _GATES]
    if len(found) != 2 or len(gates) != 1:
        return "", ()
    gate, product = gates[0], next(reader for reader in found if reader is not gates[0])
    factor = gate.outputs[0]
    right = product.op_type == "Mul" and set(product.inputs) == {value, factor}
    if not right or len(readers(factor)) != 1 or factor.is_graph_output():
        return "", ()
    slope, offset = gate.attributes.get_float("alpha", 0.2), gate.attributes.get_float("beta", 0.5)
    if gate.op_type == "HardSigmoid" and (abs(slope - 1 / 6) > 1e-6 or offset != 0.5):
        return "", ()
    return _GATES[gate.op_type], (gate, product)


def _clip_bounds(node: ir.Node) -> tuple[float, float]:
    found = []
    for place, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        given = optional(node, place)
        value = node.attributes.get_float(name, default) if given is None else scalar(constant(given))
        if value is None:
            raise NoMatch("the bounds of its clip are computed")
        found.append(value)
    return found[0], found[1]


def _with_residual(tail: Tail, *, channels_last: bool, taken: Collection[ir.Value]) -> Tail:
    """Pass a residual addition and what follows, up to its quantization."""
    if tail.clips:
        raise NoMatch("a relu or clip stands between it and a residual addition")
    reader = _only_reader(tail.end)
    if reader.op_type == "QuantizeLinear":
        tail, reader = _past_pair(tail, reader, channels_last)
    if reader.op_type != "Add":
        raise NoMatch(_stays_float(tail.end))
    if reader.outputs[0] in taken:
        raise NoMatch("the residual addition does not belong to it")
    residual = read_activation(_other(reader, tail.end), channels_last=channels_last)
    if sizes(reader.outputs[0]) != sizes(tail.end):
        raise NoMatch("what is added to its output has other sizes")
    added = tail.past(reader)
    tail = replace(with_activation(added), residual=residual)
    if len(tail.nodes) > len(added.nodes) and not tail.clips:
        raise NoMatch("a swish follows its residual addition")
    last = _only_reader(tail.end)
    if last.op_type != "QuantizeLinear":
        raise NoMatch(_stays_float(tail.end))
    return _end(tail, last, channels_last)


def _past_pair(tail: Tail, quantize: ir.Node, channels_last: bool) -> tuple[Tail, ir.Node]:
    """Skip a pair, and give what reads it."""
    pair = read_quantize(quantize, channels_last=channels_last)
    restore = _only_reader(quantize.outputs[0])
    if restore.op_type != "DequantizeLinear":
        raise NoMatch(f"its quantized output is read by {restore.op_type}")
    tail = replace(tail.past(quantize, restore), skipped=pair)
    return tail, _only_reader(tail.end)


def _end(tail: Tail, quantize: ir.Node, channels_last: bool) -> Tail:
    y = read_quantize(quantize, channels_last=channels_last)
    if quantize.outputs[0].is_graph_output():
        raise NoMatch("its quantized form is an output of the model")
    return replace(tail, nodes=(*tail.nodes, quantize), y=y)


def _only_reader(value: ir.Value) -> ir.Node:
    found = readers(value)
    if value.is_graph_output() or len(found) != 1:
        raise NoMatch(_stays_float(value))
    return found[0]


def _stays_float(value: ir.Value) -> str:
    kinds = list(dict.fromkeys(reader.op_type for reader in readers(value)))
    if value.is_graph_output():
        return "its output is an output of the model"
    return f"its output is needed in float by {', '.join(kinds)}" if kinds else "nothing reads its output"


def _other(node: ir.Node, value: ir.Value) -> ir.Value:
    """The other operand of an addition."""
    return operand(node, 1 if operand(node, 0) is value else 0)
