"""What follows a convolution or linear layer up to the next quantization, as far as one kernel computes all of it.

    [bias addition] -> [relu | clip | hard-swish | swish] -> QuantizeLinear
    [bias addition] -> [hard-swish | swish] -> [pair] -> residual addition -> [relu | clip] -> QuantizeLinear

The pair before a residual addition is skipped but for its limits: the kernel adds before it rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx

from deploypruner.sparse.layer import QuantizedTensor, Swish
from deploypruner.sparse.onnx_graph import OnnxGraph, attribute, scalar
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
        bias: Name of a constant that is added, "" without.
        swish: As `Layer.swish`.
        least: Relu or clip, in real numbers.
        most: Clip.
        residual: What is added.
        skipped: The pair that is skipped before the addition.
        y: The quantized end, None as long as it is not reached.
    """

    end: str
    nodes: tuple[onnx.NodeProto, ...]
    bias: str = ""
    swish: Swish = ""
    least: float = -np.inf
    most: float = np.inf
    residual: QuantizedTensor | None = None
    skipped: QuantizedTensor | None = None
    y: QuantizedTensor | None = None

    def past(self, *nodes: onnx.NodeProto) -> Tail:
        """The same after `nodes`, the last of which gives one tensor."""
        return replace(self, end=nodes[-1].output[0], nodes=(*self.nodes, *nodes))

    @property
    def clips(self) -> bool:
        """Is there a relu or clip?"""
        return bool(self.least > -np.inf or self.most < np.inf)


def follow(graph: OnnxGraph, node: onnx.NodeProto, *, channels_last: bool, taken: frozenset[str]) -> Tail:
    """Everything after `node` that one kernel computes.

    Args:
        graph: The QDQ graph.
        node: Conv, Gemm or MatMul.
        channels_last: As `Activation.channels_last`.
        taken: Outputs of additions that belong to other layers.

    Raises:
        NoMatch: No quantization is reached.
    """
    tail = _with_activation(graph, _with_bias(graph, Tail(node.output[0], (node,)), node))
    plain: Tail | None = None
    reader = _only_reader(graph, tail.end)
    if reader.op_type == "QuantizeLinear":
        plain = _end(graph, tail, reader, channels_last)
    try:
        return _with_residual(graph, tail, channels_last=channels_last, taken=taken)
    except NoMatch:
        if plain is None:
            raise
        return plain


def _with_bias(graph: OnnxGraph, tail: Tail, node: onnx.NodeProto) -> Tail:
    """Pass the addition of a constant after a MatMul."""
    if node.op_type != "MatMul":
        return tail
    reader = _only_reader(graph, tail.end)
    if reader.op_type != "Add":
        return tail
    other = _other(reader, tail.end)
    return replace(tail.past(reader), bias=other) if _is_stored(graph, other) else tail


def _is_stored(graph: OnnxGraph, name: str) -> bool:
    maker = graph.maker(name)
    restored = maker is not None and maker.op_type == "DequantizeLinear"
    return graph.constant(maker.input[0] if restored and maker is not None else name) is not None


def _with_activation(graph: OnnxGraph, tail: Tail) -> Tail:
    """Pass relu, clip or swish."""
    kind, nodes = _swish(graph, tail.end)
    if kind:
        return replace(tail.past(*nodes), swish=kind)
    reader = _only_reader(graph, tail.end)
    if reader.op_type == "Relu":
        return replace(tail.past(reader), least=0.0)
    if reader.op_type == "Clip":
        least, most = _clip_bounds(graph, reader)
        return replace(tail.past(reader), least=least, most=most)
    return tail


def _swish(graph: OnnxGraph, name: str) -> tuple[Swish, tuple[onnx.NodeProto, ...]]:
    """Which swish follows, and its nodes: one, or a product of x with clip(x / 6 + 1 / 2, 0, 1) or sigmoid(x)."""
    readers = graph.readers(name)
    if name in graph.outputs:
        return "", ()
    if len(readers) == 1 and readers[0].op_type in _WHOLE:
        # Of Swish the sigmoid may have a factor.
        return (_WHOLE[readers[0].op_type], (readers[0],)) if attribute(readers[0], "alpha", 1.0) == 1 else ("", ())
    gates = [reader for reader in readers if reader.op_type in _GATES]
    if len(readers) != 2 or len(gates) != 1:
        return "", ()
    gate, product = gates[0], next(reader for reader in readers if reader is not gates[0])
    right = product.op_type == "Mul" and set(product.input) == {name, gate.output[0]}
    if not right or len(graph.readers(gate.output[0])) != 1 or gate.output[0] in graph.outputs:
        return "", ()
    slope, offset = attribute(gate, "alpha", 0.2), attribute(gate, "beta", 0.5)
    if gate.op_type == "HardSigmoid" and (abs(slope - 1 / 6) > 1e-6 or offset != 0.5):
        return "", ()
    return _GATES[gate.op_type], (gate, product)


def _clip_bounds(graph: OnnxGraph, node: onnx.NodeProto) -> tuple[float, float]:
    found = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value: float | None = attribute(node, name, default)
        if len(node.input) > index and node.input[index]:
            value = scalar(graph.constant(node.input[index]))
        if value is None:
            raise NoMatch("the bounds of its clip are computed")
        found.append(float(value))
    return found[0], found[1]


def _with_residual(graph: OnnxGraph, tail: Tail, *, channels_last: bool, taken: frozenset[str]) -> Tail:
    """Pass a residual addition and what follows, up to its quantization."""
    if tail.clips:
        raise NoMatch("a relu or clip stands between it and a residual addition")
    reader = _only_reader(graph, tail.end)
    if reader.op_type == "QuantizeLinear":
        tail, reader = _past_pair(graph, tail, reader, channels_last)
    if reader.op_type != "Add":
        raise NoMatch(_stays_float(graph, tail.end))
    if reader.output[0] in taken:
        raise NoMatch("the residual addition does not belong to it")
    residual = read_activation(graph, _other(reader, tail.end), channels_last=channels_last)
    if graph.shape(reader.output[0]) != graph.shape(tail.end):
        raise NoMatch("what is added to its output has other sizes")
    added = tail.past(reader)
    tail = replace(_with_activation(graph, added), residual=residual)
    if len(tail.nodes) > len(added.nodes) and not tail.clips:
        raise NoMatch("a swish follows its residual addition")
    last = _only_reader(graph, tail.end)
    if last.op_type != "QuantizeLinear":
        raise NoMatch(_stays_float(graph, tail.end))
    return _end(graph, tail, last, channels_last)


def _past_pair(
    graph: OnnxGraph, tail: Tail, quantize: onnx.NodeProto, channels_last: bool
) -> tuple[Tail, onnx.NodeProto]:
    """Skip a pair, and give what reads it."""
    pair = read_quantize(graph, quantize, channels_last=channels_last)
    restore = _only_reader(graph, pair.name)
    if restore.op_type != "DequantizeLinear":
        raise NoMatch(f"its quantized output is read by {restore.op_type}")
    tail = replace(tail.past(quantize, restore), skipped=pair)
    return tail, _only_reader(graph, tail.end)


def _end(graph: OnnxGraph, tail: Tail, quantize: onnx.NodeProto, channels_last: bool) -> Tail:
    y = read_quantize(graph, quantize, channels_last=channels_last)
    if y.name in graph.outputs:
        raise NoMatch("its quantized form is an output of the model")
    return replace(tail, nodes=(*tail.nodes, quantize), y=y)


def _only_reader(graph: OnnxGraph, name: str) -> onnx.NodeProto:
    readers = graph.readers(name)
    if name in graph.outputs or len(readers) != 1:
        raise NoMatch(_stays_float(graph, name))
    return readers[0]


def _stays_float(graph: OnnxGraph, name: str) -> str:
    readers = list(dict.fromkeys(reader.op_type for reader in graph.readers(name)))
    if name in graph.outputs:
        return "its output is an output of the model"
    return f"its output is needed in float by {', '.join(readers)}" if readers else "nothing reads its output"


def _other(node: onnx.NodeProto, name: str) -> str:
    """The other operand of an addition."""
    names = list(node.input)
    names.remove(name)
    return str(names[0])
