"""Operators that have no ONNX counterpart in the form they were called in, spelled out in ones that have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from deploypruner.graph.nodes import arguments, is_tensor, op_name

_aten = torch.ops.aten
# ONNX's attention takes batch, heads, tokens and columns, and no more.
_ATTENTION_AXES = 4

Insert = Callable[..., Node]


def spell_out(graph: Graph) -> None:
    """Replace, in place, attention over other than four axes and pairwise distances."""
    for node in list(graph.nodes):
        write = _SPELLED.get(op_name(node)) if node.op == "call_function" else None
        if write is None:
            continue
        with graph.inserting_before(node):
            found = write(node, lambda target, *args: graph.call_function(target, args))
        if found is not None:
            found.meta = dict(node.meta)
            node.replace_all_uses_with(found)
            graph.erase_node(node)


def _attention(node: Node, call: Insert) -> Node | None:
    """softmax(scale q k^T + mask) v, without dropout."""
    args = arguments(node)
    query, key, value, mask = (args[name] for name in ("query", "key", "value", "attn_mask"))
    shape = query.meta["val"].shape
    tokens = (shape[-2], key.meta["val"].shape[-2])
    if len(shape) == _ATTENTION_AXES or args.get("enable_gqa") or not isinstance(shape[-1], int):
        return None
    if args["is_causal"] and not all(isinstance(size, int) for size in tokens):
        return None
    scale = args["scale"] if args["scale"] is not None else shape[-1] ** -0.5
    scores = call(_aten.matmul.default, call(_aten.mul.Tensor, query, scale), call(_aten.transpose.int, key, -2, -1))
    if args["is_causal"]:
        seen = call(_aten.tril.default, call(_aten.new_ones.default, query, list(tokens)))
        scores = call(_aten.masked_fill.Scalar, scores, call(_aten.eq.Scalar, seen, 0), float("-inf"))
    if is_tensor(mask):
        hidden = mask.meta["val"].dtype == torch.bool
        scores = (
            call(_aten.masked_fill.Scalar, scores, call(_aten.logical_not.default, mask), float("-inf"))
            if hidden
            else call(_aten.add.Tensor, scores, mask)
        )
    return call(_aten.matmul.default, call(_aten.softmax.int, scores, -1), value)


def _distances(node: Node, call: Insert) -> Node:
    """The norm of every difference."""
    args = arguments(node)
    left, right = call(_aten.unsqueeze.default, args["x1"], -2), call(_aten.unsqueeze.default, args["x2"], -3)
    return call(_aten.linalg_vector_norm.default, call(_aten.sub.Tensor, left, right), args["p"], [-1])


_SPELLED: dict[str, Callable[[Node, Insert], Any]] = {
    "scaled_dot_product_attention": _attention,
    "cdist": _distances,
}
