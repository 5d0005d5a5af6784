"""The winner as a recipe file that `compile --recipe` takes: its widths as cuts of [[prune.layers]] tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploypruner.channels.given_widths import given_widths
from deploypruner.errors import PlanError
from deploypruner.graph import Graph
from deploypruner.recipe import Recipe
from deploypruner.recipe.reading import overlay
from deploypruner.recipe.whole import resolved_toml


def recipe_with(recipe: Recipe, graph: Graph, widths: Mapping[str, int]) -> Recipe:
    """A recipe whose scope is "recipe" and whose cuts come to these widths.

    Args:
        recipe: What was asked of the sweep; all else in it stays.
        graph: The traced model.
        widths: Group id -> channels that stay.

    Raises:
        PlanError: The names of the model's layers cannot say these widths.
    """
    tables: list[dict[str, Any]] = []
    for group in graph.groups:
        width = widths.get(group.id, group.size)
        if width < group.size:
            tables.append({"match": group.id, "cut": 1 - width / group.size})
    theirs = [table for table in recipe.prune.layers if table.cut is None]
    found = overlay(recipe, {"prune": {"macs": 1.0, "scope": "recipe", "layers": [*theirs, *tables]}})
    said = given_widths(graph, found.prune.constraints, step=found.prune.step).widths
    asked = {group.id: widths[group.id] for group in graph.groups if widths.get(group.id, group.size) < group.size}
    other = next((name for name in asked | said if asked.get(name) != said.get(name)), None)
    if other is not None:
        raise PlanError(
            f"cuts by name cannot say the width of '{other}': {said.get(other)} instead of {asked.get(other)}",
            hint="exclude that layer with --exclude",
        )
    return found


def winner_text(recipe: Recipe, *, why: str) -> str:
    """The file, with a line that says where it is from."""
    return f"# {why}\n{resolved_toml(recipe)}"
