"""Where two forms of a graph first differ: both run side by side, operator by operator."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from deploypruner.channels.proof.masked_reference import Masked, restrict
from deploypruner.graph.execute.float64_interpreter import Streamed
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.largest_gap import largest_gap, magnitude
from deploypruner.graph.nodes import where


@torch.no_grad()
def first_difference(masked: Masked, removed: Streamed, inputs: Inputs, tolerance: float) -> str:
    """Name the first parameter or operator whose value differs, restricted to what is kept; "" when none does.

    Args:
        masked: The dense model with everything removed counting for nothing.
        removed: The module without it; its nodes keep the names they had.
        inputs: What both run on.
        tolerance: Largest difference allowed, as a part of the largest value of each tensor.
    """
    return _parameters(masked, removed, tolerance) or _operators(masked, removed, inputs, tolerance)


def place(node: Node | None) -> str:
    """An operator as a person finds it: 'layer_norm_3' (aten.layer_norm, vit.py:93 (encoder.layers.0))."""
    if node is None:
        return "the output"
    line = where(node)
    name = f"{node.target}".removesuffix(".default") if node.op == "call_function" else node.op
    return f"'{node.name}' ({name}, {line})" if line else f"'{node.name}' ({name})"


def _parameters(masked: Masked, removed: Streamed, tolerance: float) -> str:
    theirs = {node.name: node for node in removed.module.graph.nodes if node.op == "get_attr"}
    for node in masked.module.graph.nodes:
        if node.op != "get_attr" or node.name not in theirs:
            continue
        difference = _differs(masked, node, masked.read(node), removed.read(theirs[node.name]), tolerance)
        if difference:
            readers = [place(user) for user in list(node.users)[:1]]
            first = f", first read by {readers[0]}" if readers else ""
            return f"'{node.target}' differs first{first}: {difference}"
    return ""


def _operators(masked: Masked, removed: Streamed, inputs: Inputs, tolerance: float) -> str:
    shared = {node.name for node in removed.module.graph.nodes}
    theirs = removed.steps(inputs)
    for node, value in masked.steps(inputs):
        if node.name not in shared or node.op == "output":
            continue
        got = next((other for mine, other in theirs if mine.name == node.name), None)
        difference = _differs(masked, node, value, got, tolerance)
        if difference:
            return f"{place(node)} differs first: {difference}"
    return ""


def _differs(masked: Masked, node: Node, wanted: Any, got: Any, tolerance: float) -> str:
    """How the value of a node differs from what it should be; "" when it does not, or cannot be compared."""
    if not masked.comparable(node):
        return ""
    wanted, got = ([v] if isinstance(v, Tensor) else v for v in (wanted, got))
    if not isinstance(wanted, list | tuple):
        return ""
    for mine, other, gone in zip(wanted, got, masked.gone(node), strict=True):
        if not isinstance(mine, Tensor) or any(len(indices) != mine.shape[axis] for axis, indices in gone):
            continue  # a number, or an axis that holds the batch
        kept = restrict(mine, gone)
        if kept.shape != other.shape:
            return f"shape {list(other.shape)} instead of {list(kept.shape)}"
        if not kept.is_floating_point() or not kept.numel():
            continue
        gap, scale = largest_gap(other, kept), magnitude(kept)
        if gap > tolerance * scale:
            return f"max |difference| {gap:.2e}, largest value {scale:.2e}"
    return ""
