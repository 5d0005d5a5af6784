"""Depth: which residual branches may go as wholes, and below which widths nothing is cut unless it must be."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from deploypruner.channels.constraints import parameters_named
from deploypruner.graph import Graph
from deploypruner.recipe.constraints import Constraints, LayerConstraint

# Of every group's channels; see `floors`.
_QUARTER = 0.25
# As `graph.frozen` calls them.
_OUTPUT, _INPUT = "model output", "model input"


def held_branches(graph: Graph, constraints: Constraints) -> dict[str, str]:
    """Branch id -> why the branch stays, in a few words; "" where it may go.

    A branch stays where the user excludes a layer of it, or limits how far a layer of it may be cut.

    Args:
        graph: The traced model.
        constraints: What the user wants.

    Raises:
        RecipeError: A pattern that matches nothing; the nearest name is offered.
    """
    rules = [*(LayerConstraint(pattern, exclude=True) for pattern in constraints.exclude), *constraints.layers]
    holding = [r for r in rules if r.exclude or r.max_cut is not None or r.min_width is not None or r.cut is not None]
    named = parameters_named(graph, [rule.match for rule in holding])
    found = {}
    for branch in graph.branches:
        mine = set(branch.parameters)
        rule = next((rule for rule in holding if mine & named[rule.match]), None)
        if constraints.depth == "keep":
            found[branch.id] = "--depth keep"
        elif rule is not None:
            found[branch.id] = f"{'excluded' if rule.exclude else 'limited'} by '{rule.match}'"
        else:
            found[branch.id] = ""
    return found


def floors(graph: Graph) -> dict[str, int]:
    """Group id -> channels it keeps unless the budget is out of reach with so many.

    The stem, which reads the model's input, stays whole; what a classifier reads keeps at least one channel a class;
    every other group keeps a quarter.

    Args:
        graph: The traced model.

    Source:
        The stem: HALP, arXiv:2110.10811, and MDP, arXiv:2504.02168, never cut it. A capacity floor for every group:
        arXiv:2509.25606. The classifier and the numbers are ours.
    """
    classes = _frozen_axes(graph, _OUTPUT, axis=0)
    stems = _frozen_axes(graph, _INPUT, axis=1)
    found = {}
    for group in graph.groups:
        least = ceil(_QUARTER * group.size)
        for member in group.members:
            if member.axis == 1 and member.parameter in classes:
                least = max(least, min(group.size, ceil(classes[member.parameter] / member.index.shape[1])))
            if member.axis == 0 and member.parameter in stems:
                least = group.size
        found[group.id] = least
    return found


def _frozen_axes(graph: Graph, reason: str, *, axis: int) -> Mapping[str, int]:
    """Parameter -> how many positions of this axis are frozen for a reason."""
    return {f.parameter: f.count for f in graph.frozen if f.reason == reason and f.axis == axis}
