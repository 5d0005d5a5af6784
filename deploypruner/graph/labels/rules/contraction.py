"""Operators that sum over a shared axis: linear, convolution, matrix products, attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.rules import rule
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import arguments, is_tensor, op_name, shape_of

SPATIAL = "a window (convolution, pooling, resampling) moves along this axis"
_VIEWS = frozenset(
    "t numpy_T mT transpose permute movedim view reshape flatten unflatten unsqueeze squeeze expand to _to_copy "
    "contiguous clone detach alias".split()
)


@rule("linear")
def linear(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """y[.., o] = sum_i x[.., i] w[o, i] + b[o]."""
    x, weight = tracing.axes(args["input"]), tracing.axes(args["weight"])
    tracing.unify(x[-1], weight[1], "a linear layer over an axis of fixed length (tokens, pixels)")
    _bias(tracing, args["bias"], weight[0])
    tracing.role(args["weight"], 0, "producer")
    tracing.role(args["weight"], 1, "consumer")
    tracing.affine(args["weight"], args["bias"], 0, "producer")
    out = [*x[:-1], weight[0]]
    inner = (weight[1], shape_of(args["weight"])[1])
    tracing.contraction(node, args["weight"], [*zip(out, shape_of(node), strict=True), inner])
    return out


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """y[n, o, ..] = sum over i of the group of o: w[o, i, ..] x[n, i, ..] + b[o]."""
    if args.get("transposed"):
        return transposed_convolution(tracing, node, args)
    x, weight, channel = _prepare(tracing, args)
    x_shape, w_shape, groups = shape_of(args["input"]), shape_of(args["weight"]), args["groups"]
    if groups == 1:
        tracing.unify(x[channel], weight[1], "a convolution over channels whose number is fixed")
        out = weight[0]
    else:
        x_group, x_column = tracing.atoms.split(x[channel], [groups, x_shape[channel] // groups])
        w_group, w_column = tracing.atoms.split(weight[0], [groups, w_shape[0] // groups])
        out = _grouped(tracing, node, (x_group, x_column), (w_group, weight[1]), (w_column, w_shape[0] // groups))
    _bias(tracing, args["bias"], out)
    tracing.role(args["weight"], 0, "producer")
    tracing.affine(args["weight"], args["bias"], 0, "producer")
    if groups == 1:
        tracing.role(args["weight"], 1, "consumer")
    axes = [*x[:channel], out, *x[channel + 1 :]]
    window = [(None, size) for size in w_shape[2:]]
    tracing.contraction(
        node, args["weight"], [*zip(axes, shape_of(node), strict=True), (weight[1], w_shape[1]), *window]
    )
    return axes


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """The weight is [in, out / groups, ..]: its first axis is the input's channels."""
    x, weight, channel = _prepare(tracing, args)
    x_shape, w_shape, groups = shape_of(args["input"]), shape_of(args["weight"]), args["groups"]
    if groups == 1:
        tracing.unify(x[channel], weight[0], "a convolution over channels whose number is fixed")
        out = weight[1]
        tracing.role(args["weight"], 1, "producer")
        tracing.role(args["weight"], 0, "consumer")
        tracing.affine(args["weight"], args["bias"], 1, "producer")
    else:
        sizes = [groups, x_shape[channel] // groups]
        x_group, x_column = tracing.atoms.split(x[channel], sizes)
        w_group, w_column = tracing.atoms.split(weight[0], sizes)
        out = _grouped(tracing, node, (x_group, x_column), (w_group, w_column), (weight[1], w_shape[1]))
    _bias(tracing, args["bias"], out)
    inputs = zip(x, x_shape, strict=True)
    window = [(None, size) for size in w_shape[2:]]
    tracing.contraction(node, args["weight"], [*inputs, (weight[1], w_shape[1]), *window])
    return [*x[:channel], out, *x[channel + 1 :]]


def _prepare(tracing: Tracing, args: dict[str, Any]) -> tuple[list[Labels], list[Labels], int]:
    """Labels of input and weight, and the input's channel axis; axes under a window are frozen.

    A window of one that moves by one is none: each index of its axis is a case of its own.
    """
    x, weight, window = tracing.axes(args["input"]), tracing.axes(args["weight"]), shape_of(args["weight"])[2:]
    channel = len(x) - len(weight) + 1
    for axis, size in enumerate(window):
        stride, padding, extra = (_along(args.get(name), axis) for name in ("stride", "padding", "output_padding"))
        if size == 1 and stride == 1 and padding in (0, "valid", "same") and not extra:
            continue
        tracing.freeze(weight[2 + axis], SPATIAL)
        tracing.freeze(x[channel + 1 + axis], SPATIAL)
        x[channel + 1 + axis] = None
    return x, weight, channel


def _along(argument: Any, axis: int) -> Any:
    """One axis' entry of an argument that may name all axes at once."""
    if isinstance(argument, list | tuple):
        return argument[axis] if len(argument) > 1 else argument[0]
    return argument


def _grouped(
    tracing: Tracing,
    node: Node,
    x: tuple[Labels, Labels],
    weight: tuple[Labels, Labels],
    columns: tuple[Labels, int],
) -> Labels:
    """Groups vanish as a whole; the columns inside them vanish in every group alike. Returns the output channels.

    A depthwise convolution is the case of one column per group.
    """
    tracing.unify(x[0], weight[0], "groups of a convolution over channels whose number is fixed")
    tracing.unify(x[1], weight[1], "a grouped convolution over channels whose number is fixed")
    group = weight[0] if weight[0] is not None else x[0]
    tracing.counts[node] = ("groups", group)
    return tracing.atoms.flatten([group, columns[0]], [arguments(node)["groups"], columns[1]])


@rule("matmul", "bmm", "mm", "mv", "dot", "vdot")
def matmul(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Batched matrix product with numpy's broadcasting."""
    return _product(tracing, node, node.args[0], node.args[1])


@rule("addmm", "baddbmm")
def addmm(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """Bias + a @ b, the bias broadcast."""
    bias, a, b = node.args[:3]
    out, out_shape = _product(tracing, node, a, b), shape_of(node)
    for back, (labels, size) in enumerate(
        zip(reversed(tracing.axes(bias)), reversed(shape_of(bias)), strict=True),
        start=1,
    ):
        if size > 1 and size == out_shape[-back]:
            tracing.unify(out[-back], labels, "added to a matrix product of fixed size")
    return out


@rule("bilinear")
def bilinear(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """y[.., o] = sum over i and j of a[.., i] w[o, i, j] b[.., j] + c[o]."""
    a, b, weight = (tracing.axes(args[name]) for name in ("input1", "input2", "weight"))
    for axis, labels in ((1, a[-1]), (2, b[-1])):
        tracing.unify(labels, weight[axis], "a bilinear layer over an axis of fixed length")
        tracing.role(args["weight"], axis, "consumer")
    lead = [tracing.unify(x, y, "batch axis of a bilinear layer") for x, y in zip(a[:-1], b[:-1], strict=True)]
    _bias(tracing, args["bias"], weight[0])
    tracing.role(args["weight"], 0, "producer")
    tracing.affine(args["weight"], args["bias"], 0, "producer")
    out = [*lead, weight[0]]
    inner = zip(weight[1:], shape_of(args["weight"])[1:], strict=True)
    tracing.contraction(node, args["weight"], [*zip(out, shape_of(node), strict=True), *inner])
    return out


def _product(tracing: Tracing, node: Node, left: Any, right: Any) -> list[Labels]:
    a, a_shape, b, b_shape = tracing.axes(left), shape_of(left), tracing.axes(right), shape_of(right)
    a_vector, b_vector = len(a_shape) == 1, len(b_shape) == 1
    if a_vector:
        a, a_shape = [None, *a], [1, *a_shape]
    if b_vector:
        b, b_shape = [*b, None], [*b_shape, 1]
    inner = tracing.unify(a[-1], b[-2], "multiplied with a matrix of fixed size")
    rank = max(len(a_shape), len(b_shape)) - 2
    batch = [_batch_axis(tracing, (a, a_shape), (b, b_shape), back) for back in range(rank, 0, -1)]
    out = batch + ([] if a_vector else [a[-2]]) + ([] if b_vector else [b[-1]])
    for operand, producer, consumer in ((right, -1, -2), (left, -2, -1)):
        weight = _parameter(operand)
        if weight is not None:
            if weight is operand and len(tracing.raw(weight)) == 2:
                tracing.role(weight, producer % 2, "producer")
                tracing.role(weight, consumer % 2, "consumer")
            tracing.contraction(node, weight, [*zip(out, shape_of(node), strict=True), (inner, a_shape[-1])])
            break
    return out


def _parameter(operand: Any) -> Node | None:
    """The parameter an operand is a view or a cast of: a product with it is a layer, one without is not."""
    while isinstance(operand, Node) and op_name(operand) in _VIEWS:
        operand = operand.args[0]
    return operand if isinstance(operand, Node) and operand.op == "get_attr" else None


def _batch_axis(
    tracing: Tracing, a: tuple[list[Labels], list[int]], b: tuple[list[Labels], list[int]], back: int
) -> Labels:
    """The batch axis `back` places before the matrix axes of a broadcast product."""
    a_at, b_at = len(a[1]) - 2 - back, len(b[1]) - 2 - back
    if a_at < 0 or a[1][a_at] == 1:
        return b[0][b_at] if b_at >= 0 else None
    if b_at < 0 or b[1][b_at] == 1:
        return a[0][a_at]
    return tracing.unify(a[0][a_at], b[0][b_at], "one of many matrix products, whose number is fixed")


@rule("einsum")
def einsum(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """Axes with the same letter vanish together; those under an ellipsis are matched from the end."""
    operands = args["tensors"]
    inputs, output = _letters(args["equation"].replace(" ", ""), [len(shape_of(t)) for t in operands])
    known: dict[str, Labels] = {}
    sizes: dict[str, int] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        for letter, labels, size in zip(letters, tracing.axes(operand), shape_of(operand), strict=True):
            if size == 1:
                continue  # broadcast
            sizes[letter] = size
            known[letter] = (
                tracing.unify(known[letter], labels, f"einsum index {letter}, which is of fixed length")
                if letter in known
                else labels
            )
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        if (weight := _parameter(operand)) is not None:
            # As the last of the pairwise products: everything else is summed away before.
            involved = dict.fromkeys(letter for letter in output + letters if letter in sizes)
            tracing.contraction(node, weight, [(known[letter], sizes[letter]) for letter in involved])
    return [known.get(letter) for letter in output]


def _letters(equation: str, ranks: list[int]) -> tuple[str, str]:
    """Inputs and output of an equation with every axis named; an ellipsis stands for capitals from the end."""
    inputs, arrow, output = equation.partition("->")
    letters = inputs.replace(",", "").replace(".", "")
    spare = "".join(c for c in "ZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in letters)
    covered = [rank - len(t.replace(".", "")) for t, rank in zip(inputs.split(","), ranks, strict=True)]
    named = [t.replace("...", spare[:n][::-1]) for t, n in zip(inputs.split(","), covered, strict=True)]
    dots = spare[: max((n for t, n in zip(inputs.split(","), covered, strict=True) if "." in t), default=0)][::-1]
    if not arrow:
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        output = ("..." if dots else "") + output
    return ",".join(named), output.replace("...", dots)


@rule("scaled_dot_product_attention")
def attention(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """softmax(q k^T) v: heads and columns of q and k vanish together, tokens under the softmax never."""
    q, k, v = (tracing.axes(args[name]) for name in ("query", "key", "value"))
    q_shape, k_shape = shape_of(args["query"]), shape_of(args["key"])
    tracing.unify(q[-1], k[-1], "attention's q and k have equal columns, one side of fixed number")
    for tokens in (k[-2], v[-2]):
        tracing.freeze(tokens, "tokens, over all of which attention takes a softmax")
    for i in range(len(q) - 2):
        tracing.unify(k[i], v[i], "attention's q, k and v have equal heads, one side of fixed number")
        if q_shape[i] == k_shape[i]:
            tracing.unify(q[i], k[i], "attention's q, k and v have equal heads, one side of fixed number")
        elif args.get("enable_gqa") and i == len(q) - 3:
            shared, _ = tracing.atoms.split(q[i], [k_shape[i], q_shape[i] // k_shape[i]])
            tracing.unify(shared, k[i], "query heads share key heads, whose number is fixed")
        else:
            tracing.freeze(q[i], "attention's q and k have different numbers of heads")
            tracing.freeze(k[i], "attention's q and k have different numbers of heads")
    if is_tensor(args["attn_mask"]):
        _attention_mask(tracing, args["attn_mask"], [*q[:-1], k[-2]], [*q_shape[:-1], k_shape[-2]])
    return [*q[:-1], v[-1]]


def _attention_mask(tracing: Tracing, mask: Node, scores: Sequence[Labels], scores_shape: Sequence[int]) -> None:
    labels, shape = tracing.axes(mask), shape_of(mask)
    for back in range(1, len(shape) + 1):
        if shape[-back] > 1 and shape[-back] == scores_shape[-back]:
            tracing.unify(scores[-back], labels[-back], "an attention mask of fixed size is added")


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrent(tracing: Tracing, node: Node, args: dict[str, Any]) -> Any:
    """What the first layer reads may shrink; the state is stacked four or three times in one weight, and stays."""
    x, params = args.get("input", args.get("data")), args["params"]
    first = len(params) // int(args["num_layers"])
    directions = 2 if args["bidirectional"] else 1
    for weight in params[: first : first // directions]:
        tracing.unify(tracing.axes(x)[-1], tracing.axes(weight)[1], "a recurrent layer over inputs of fixed number")
        tracing.role(weight, 1, "consumer")
        tracing.freeze(tracing.axes(weight)[0], "state of a recurrent layer")
    for labels in tracing.axes(x)[:-1]:
        tracing.freeze(labels, "steps in time of a recurrent layer")
    return tracing.frozen(node, "state of a recurrent layer", spared=[x, *params[: first : first // directions]])


def _bias(tracing: Tracing, bias: Any, out: Labels) -> None:
    if is_tensor(bias):
        tracing.unify(out, tracing.axes(bias)[0], "bias of a layer whose output is fixed")
        tracing.role(bias, 0, "producer")
