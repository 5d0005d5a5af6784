"""What a latency model says before anything is cut: the range of reach, and each group's part in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Setting
from deploypruner.search.choices import TallyOf
from deploypruner.search.losses import losses_from_scores, running_importance
from deploypruner.search.solve import LayersOf, Reach, Solution, reach, solve, with_branches


class PredictsPlans(Protocol):
    """The part of a latency model this needs."""

    @property
    def tally(self) -> TallyOf:
        """Makes a running prediction."""

    @property
    def layers(self) -> LayersOf:
        """Time of each layer of a plan."""


@dataclass(frozen=True)
class GroupTime:
    """What time has to do with one group or residual branch.

    Args:
        saved_ms: Predicted to disappear with this group alone at its narrowest, or with this branch alone; 0 where it
            stays whole.
        importance_per_ms: Share of the importance of the whole model that goes per millisecond so saved, None where
            nothing is saved.
    """

    saved_ms: float
    importance_per_ms: float | None


@dataclass(frozen=True)
class LatencyOutlook:
    """Predicted milliseconds of a model and its plans in one setting.

    Args:
        setting: Runtime, precision and threads.
        reach: The range.
        groups: Group or branch id -> its part.
        solution: The plan for the budget, None where none was asked for.
        remarks: What a user should know about the predictions.
    """

    setting: Setting
    reach: Reach
    groups: Mapping[str, GroupTime]
    solution: Solution | None = None
    remarks: tuple[str, ...] = ()


def look_ahead(
    graph: Graph,
    scores: Mapping[str, Tensor],
    model: PredictsPlans,
    setting: Setting,
    *,
    budget: Budget | None = None,
    normalizer: Normalizer = "none",
    step: int = 8,
    constraints: Constraints | None = None,
    seed: int = 0,
) -> LatencyOutlook:
    """Predict the range of reach, what each group contributes, and the plan for a budget.

    A quantile is not predicted: a latency counts as that of the median.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        model: PredictsPlans.
        setting: What it predicts for.
        budget: Of kind "latency" or "speedup", or None.
        normalizer: As in `solve`.
        step: As in `solve`.
        constraints: As in `solve`.
        seed: As in `solve`.

    Raises:
        BudgetError: The budget is out of reach.
        RecipeError: A pattern of the constraints matches nothing.
    """
    constraints = constraints or Constraints()
    order = with_branches(graph, by_importance(scores))
    found = reach(graph, model.tally, step=step, constraints=constraints)
    running = running_importance(graph, scores, order, normalizer=normalizer)
    whole = sum(float(line[-1]) for line in running.values())
    tally, groups = model.tally(order), {}
    losses = losses_from_scores(graph, running)
    least = found.room.narrowest
    lost = {g.id: float(losses.groups[g.id][len(least[g.id])]) for g in graph.groups} | dict(losses.branches)
    for name in lost:
        width = len(least.get(name, order[name]))
        saved = max(0.0, tally.ms - float(tally.sweep(name, np.array([width]))[0]))
        groups[name] = GroupTime(saved, lost[name] / whole / saved if saved > 0 and whole > 0 else None)
    solution = None
    if budget is not None:
        asked = found.dense_ms / budget.speedup if budget.speedup is not None else budget.latency_ms
        if budget.fastest:
            raise RecipeError(f"{budget} is found by judging plans, which `plan` does not", hint="give a time")
        assert asked is not None, "multiply-adds are no time; `allocate` plans for them"
        solution = solve(
            graph,
            scores,
            model.tally,
            asked,
            normalizer=normalizer,
            step=step,
            constraints=constraints,
            layers_of=model.layers,
            seed=seed,
        )
    return LatencyOutlook(setting, found, groups, solution)
