"""A budget that cannot be reached: refused before an earlier build is replaced, with what can be reached saved."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch

from deploypruner.build.folder import BuildFolder
from deploypruner.build.state import Build
from deploypruner.channels.allocate import allocate, reachable
from deploypruner.errors import BudgetError, DeployPrunerError, InputError

REACHABLE = "reachable.json"


def save_reachable(folder: BuildFolder, error: DeployPrunerError, numbers: dict[str, Any]) -> None:
    """Write what can be reached, if anything can be written: the budget is what the user has to hear about."""
    with suppress(InputError):
        folder.prepare()
        folder.write_json(REACHABLE, {"message": error.message, "hint": error.hint, **numbers})


def require_reachable(build: Build) -> None:
    """Refuse a budget out of reach before an earlier build is replaced, and save what can be reached."""
    graph, recipe = build.traced, build.recipe.prune
    budget = recipe.budget
    if budget.macs is None:  # milliseconds are for `allocate` to find out
        return
    least, dense = reachable(graph, recipe.step, recipe.constraints), graph.costs.macs()
    if budget.macs == 1 or least <= budget.macs * dense:
        return
    try:
        # Whatever the scores: this only finds the words for what is known already.
        scores = {group.id: torch.zeros(group.size) for group in graph.groups}
        allocate(graph, scores, budget, criterion="", step=recipe.step, constraints=recipe.constraints)
    except BudgetError as error:
        numbers = {"requested_macs": budget.macs, "reachable_macs": least / dense, "step": recipe.step}
        save_reachable(build.folder, error, numbers)
        raise
