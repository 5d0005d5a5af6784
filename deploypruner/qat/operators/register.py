"""Where the operators are: name -> what computes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import onnx_ir as ir

Inputs = Sequence[Any]  # tensors, None for one that is left out
Operator = Callable[[ir.Node, Inputs], Any]

OPERATORS: dict[str, Operator] = {}
"""Operator of the standard domain -> what computes it."""


def operator(*names: str) -> Callable[[Operator], Operator]:
    """Register what computes an operator."""

    def add(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return add


def integers(node: ir.Node, name: str) -> list[int] | None:
    """An attribute of integers, None where the node has none of that name."""
    found = node.attributes.get(name)
    return None if found is None else [int(i) for i in found.as_ints()]


def axes_of(node: ir.Node, inputs: Inputs, place: int = 1) -> list[int] | None:
    """Axes as an input or, in older opsets, as an attribute; None where the node names none."""
    if len(inputs) > place and inputs[place] is not None:
        return [int(i) for i in inputs[place].reshape(-1).tolist()]
    return integers(node, "axes")
