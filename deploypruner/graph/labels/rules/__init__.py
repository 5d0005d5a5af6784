"""How each ATen operator relates the labels of its inputs to those of its output: one function per rule.

A rule is `rule(tracing, node, arguments) -> axis values` (a list of lists for operators with several outputs) and is
registered under the operator's functional name. To support an operator, add it here; whatever has no rule is
frozen with that reason, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Node

from deploypruner.graph.labels.tracing import Tracing
from deploypruner.graph.nodes import op_name

Rule = Callable[[Tracing, Node, dict[str, Any]], Any]

RULES: dict[str, Rule] = {}
SIZES: dict[str, str] = {}
"""Operator -> the argument that holds the lengths of its output's axes; where one shrinks, its length there does."""
FAMILIES: list[tuple[Callable[[Node], bool], Rule]] = []
_FOUND: dict[Any, Rule | None] = {}


def rule(*names: str, sizes: str | Mapping[str, str] = "") -> Callable[[Rule], Rule]:
    """Register a rule for the operators called `names`.

    Args:
        names: Functional names: "view" for aten.view and aten.view_.
        sizes: The argument that holds the lengths of the output's axes, where there is one: "size". By name where
            it is not the same for all. A rule notes an argument that counts something else in `tracing.counts`.
    """

    def add(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for aten.{name}"
            RULES[name] = function
        SIZES.update(dict.fromkeys(names, sizes) if isinstance(sizes, str) and sizes else dict(sizes or {}))
        return function

    return add


def family(matches: Callable[[Node], bool]) -> Callable[[Rule], Rule]:
    """Register a rule for all operators that `matches` accepts and that have no rule of their own."""

    def add(function: Rule) -> Rule:
        FAMILIES.append((matches, function))
        return function

    return add


def find(node: Node) -> Rule | None:
    """The rule for a call: the operator's own, or that of the first family it belongs to."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if target not in _FOUND:
        general = next((general for matches, general in FAMILIES if matches(node)), None)
        _FOUND[target] = RULES.get(op_name(node), general)
    return _FOUND[target]
