"""Operators that work element by element: the axes of all operands vanish together."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.utils import _pytree as pytree

from deploypruner.graph.labels.atoms import Labels
from deploypruner.graph.labels.rules import family, rule
from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import is_tensor, op_name, shape_of

# Elementwise by meaning, but not tagged so by torch.
_UNTAGGED = frozenset(
    "where hardswish hardsigmoid masked_fill copy fill zero log_sigmoid lerp zeros_like ones_like full_like "
    "rand_like randn_like empty_like rrelu softplus nan_to_num hardtanh silu mish __and__ __or__ bernoulli".split()
)


@rule(
    *"dropout feature_dropout alpha_dropout feature_alpha_dropout contiguous clone alias detach lift_fresh_copy to "
    "_to_copy type_as float double half requires_grad_ positive real imag _conj resolve_conj resolve_neg".split()
)
def same_axes(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Any]:
    """The output is the input, index by index; a joint split passes through."""
    return tracing.raw(node.args[0])


@family(
    lambda node: (
        op_name(node) in _UNTAGGED or torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
    )
)
def elementwise(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Any]:
    """Broadcast: per output axis, every operand that has its full length vanishes with it."""
    operands = [a for a in pytree.tree_leaves((node.args, node.kwargs)) if is_tensor(a)]
    out_shape = shape_of(node)
    if len(operands) == 1 and len(tracing.raw(operands[0])) == len(out_shape):
        return tracing.raw(operands[0])
    out: list[Labels] = [None] * len(out_shape)
    seen = [False] * len(out_shape)
    for operand in operands:
        shape = shape_of(operand)
        offset = len(out_shape) - len(shape)
        for i, (labels, size) in enumerate(zip(tracing.axes(operand), shape, strict=True)):
            j = offset + i
            if j < 0 or size == 1 or size != out_shape[j]:
                continue
            out[j] = (
                tracing.unify(out[j], labels, "combined element by element with a fixed axis (tokens, pixels)")
                if seen[j]
                else labels
            )
            seen[j] = True
    return out


@rule("prelu")
def prelu(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """One slope per channel, or one for all."""
    axes = tracing.axes(node.args[0])
    if shape_of(node.args[1])[0] > 1:
        slopes = tracing.axes(node.args[1])[0]
        axes[1] = tracing.unify(axes[1], slopes, "one prelu slope per channel, of fixed number")
    return axes


@rule("glu")
def glu(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """The two halves of one axis are multiplied: index i of each vanishes together."""
    axes = tracing.axes(args["self"])
    d = args["dim"] % len(axes)
    half = shape_of(node)[d]
    labels = axes[d]
    if labels is not None:
        axes[d] = tracing.unify(labels[:half], labels[half:], "halves of a gated linear unit, one of them fixed")
    return axes


@rule(*"zeros ones full new_zeros new_ones new_full empty new_empty rand randn".split(), sizes="size")
def created(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """A new constant takes whatever size it is needed in: fresh labels adopt what they meet."""
    return [tracing.atoms.fresh(size) for size in shape_of(node)]


@rule("arange", "linspace", "eye")
def counted(tracing: Tracing, node: Node, args: dict[str, Any]) -> list[Labels]:
    """The values depend on the position: nothing may be removed."""
    return [None] * len(shape_of(node))
