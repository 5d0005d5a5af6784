"""How each ATen operator relates the labels of its inputs to those of its output: one function per rule.

A rule is `rule(tracing, node, arguments) -> axis values` (a list of lists for operators with several outputs) and is
registered under the operator's functional name. To support an operator, add it here; whatever has no rule is
frozen with that reason, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch.fx import Node

if TYPE_CHECKING:
    from deploypruner.graph.propagate import Tracing

Rule = Callable[["Tracing", Node, dict[str, Any]], Any]

RULES: dict[str, Rule] = {}
FAMILIES: list[tuple[Callable[[Node], bool], Rule]] = []


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for the operators called `names`."""

    def add(function: Rule) -> Rule:
        for name in names:
            assert name not in RULES, f"two rules for aten.{name}"
            RULES[name] = function
        return function

    return add


def family(matches: Callable[[Node], bool]) -> Callable[[Rule], Rule]:
    """Register a rule for all operators that `matches` accepts and that have no rule of their own."""

    def add(function: Rule) -> Rule:
        FAMILIES.append((matches, function))
        return function

    return add
