"""A budget of milliseconds to widths and branches: the least predicted loss that is predicted to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isnan, log10

import numpy as np
import torch
from torch import Tensor

from deploypruner.channels.allocate import require_movable
from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.feasible_widths import Order, Room, by_importance, find_room, most_important
from deploypruner.errors import BudgetError
from deploypruner.graph import Graph
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.recipe.constraints import Constraints
from deploypruner.search.bottlenecks import TimedLayer, obstacles
from deploypruner.search.choices import TallyOf, WidthWalk
from deploypruner.search.losses import Losses, kept_share, losses_from_scores, make_choices, running_importance
from deploypruner.search.solver import best_places, fastest

Keep = Mapping[str, IntArray]
LayersOf = Callable[[Keep], Sequence[TimedLayer]]


@dataclass(frozen=True)
class Solution:
    """A plan for a budget of milliseconds.

    Args:
        widths: Group id -> channels that stay, of every group; branch id -> 1 or 0, of every branch that may go.
        keep: Group id -> which, ascending; branch id -> nothing, of every branch that goes.
        predicted_ms: Of the plan; at most the budget.
        importance: Share of the importance that stays, 0 to 1.
        loss: Predicted, in the unit of the losses; NaN where the plan follows from a rule.
        dense_ms: Predicted, of the whole model.
        fastest_ms: Predicted, of the fastest plan.
    """

    widths: Mapping[str, int]
    keep: Keep
    predicted_ms: float
    importance: float
    loss: float
    dense_ms: float
    fastest_ms: float

    @property
    def merit(self) -> float:
        """What it was solved for: little loss, or where nobody predicted one, much importance."""
        return self.importance if isnan(self.loss) else -self.loss

    @property
    def dropped(self) -> tuple[str, ...]:
        """Ids of the branches that go."""
        return tuple(name for name, width in self.widths.items() if not width)


@dataclass(frozen=True)
class Reach:
    """How fast a model can become.

    Args:
        dense_ms: Predicted, of the whole model.
        fastest_ms: Predicted, of the fastest plan.
        keep: The fastest plan: group id -> channels, ascending.
        room: What may be cut for it.
    """

    dense_ms: float
    fastest_ms: float
    keep: Keep
    room: Room


def solve(
    graph: Graph,
    scores: Mapping[str, Tensor],
    tally_of: TallyOf,
    budget_ms: float,
    *,
    losses: Losses | None = None,
    normalizer: Normalizer = "none",
    step: int = 8,
    constraints: Constraints | None = None,
    layers_of: LayersOf | None = None,
    seed: int = 0,
) -> Solution:
    """Choose the widths and branches that cost the least within a predicted time.

    Every group then has a width that costs something to exceed: no group can be widened without leaving the budget.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        tally_of: Predicts milliseconds, `LatencyModel.tally`.
        budget_ms: What the plan may take.
        losses: What each choice costs, with the channels of each group ordered by `scores`; the importance that goes
            with it where None.
        normalizer: How to compare scores across groups.
        step: Widths become multiples of this, counted in output channels of the layers concerned.
        constraints: What may be cut, and how far.
        layers_of: Plan -> time of each layer, `LatencyModel.layers`, to say what stands in the way.
        seed: Of the restarts.

    Raises:
        BudgetError: The fastest plan takes longer; the message says how fast that is and what stands in the way.
        InputError: Nothing can be pruned at all.
        RecipeError: A pattern of the constraints matches nothing.
    """
    constraints = constraints or Constraints()
    space = _Space.of(
        graph,
        scores,
        tally_of,
        losses=losses,
        normalizer=normalizer,
        constraints=constraints,
        step=step,
        target=budget_ms,
    )
    places = best_places(space.walk, budget_ms, seed=seed)
    if places is None:
        require_movable(graph, space.room.limits, step)
        raise _out_of_reach(graph, budget_ms, space.reach(), layers_of=layers_of, constraints=constraints, step=step)
    space.walk.go(places)
    widths = space.widths(places)
    return Solution(
        widths=widths,
        keep=most_important(space.room.order, widths),
        predicted_ms=space.walk.ms,
        importance=kept_share(space.by_score, widths),
        loss=-space.walk.worth,
        dense_ms=space.dense_ms,
        fastest_ms=space.fastest_ms,
    )


def reach(graph: Graph, tally_of: TallyOf, *, step: int = 8, constraints: Constraints | None = None) -> Reach:
    """How fast the model can become: every group as narrow as the constraints allow, unless wider is no slower.

    Args:
        graph: The traced model.
        tally_of: Predicts milliseconds.
        step: As in `solve`.
        constraints: As in `solve`.

    Raises:
        RecipeError: A pattern of the constraints matches nothing.
    """
    scores = {group.id: torch.ones(group.size) for group in graph.groups}
    constraints = constraints or Constraints()
    return _Space.of(
        graph, scores, tally_of, losses=None, normalizer="none", constraints=constraints, step=step, target=0.0
    ).reach()


# ---------------------------------------------------------------------- the plans there are


@dataclass(frozen=True)
class _Space:
    """All plans that are allowed.

    Args:
        graph: The traced model.
        room: How far each group may be cut.
        by_score: The importance that goes with each choice.
        walk: Goes from plan to plan.
        dense_ms: Of the whole model.
        fastest_ms: Of the fastest plan.
        quickest: Where it is.
    """

    graph: Graph
    room: Room
    by_score: Losses
    walk: WidthWalk
    dense_ms: float
    fastest_ms: float
    quickest: tuple[int, ...]

    @staticmethod
    def of(
        graph: Graph,
        scores: Mapping[str, Tensor],
        tally_of: TallyOf,
        *,
        losses: Losses | None,
        normalizer: Normalizer,
        constraints: Constraints,
        step: int,
        target: float,
    ) -> _Space:
        """Find it; groups that change statistics belong to it only where the target is out of reach without."""

        def explored(room: Room) -> _Space:
            running = running_importance(graph, scores, room.order, normalizer=normalizer)
            by_score = losses_from_scores(graph, running)
            choices = make_choices(graph, room, losses or by_score)
            walk = WidthWalk(choices, tally_of(with_branches(graph, room.order)), room.order)
            dense_ms, quickest = walk.ms, fastest(walk)
            return _Space(graph, room, by_score, walk, dense_ms, min(dense_ms, walk.ms), quickest)

        room, _ = find_room(
            graph,
            by_importance(scores),
            constraints,
            step=step,
            cost=lambda room: explored(room).fastest_ms,
            target=target,
            depth=True,
        )
        return explored(room)

    def widths(self, places: Sequence[int]) -> dict[str, int]:
        """Of every group, and of every branch that may go; groups inside one that goes count as whole."""
        at = list(zip(self.walk.choices, places, strict=True))
        branches = {c.branch: int(c.widths[i] > 0) for c, i in at if c.drops}
        chosen = {name: int(c.widths[i]) for c, i in at if branches.get(c.branch, 1) for name in (c.group, *c.tied)}
        return {group.id: chosen.get(group.id, group.size) for group in self.graph.groups} | branches

    def reach(self) -> Reach:
        """The fastest plan."""
        keep = most_important(self.room.order, self.widths(self.quickest))
        return Reach(self.dense_ms, self.fastest_ms, keep, self.room)


# ---------------------------------------------------------------------- refusing


def _out_of_reach(
    graph: Graph,
    budget_ms: float,
    found: Reach,
    *,
    layers_of: LayersOf | None,
    constraints: Constraints,
    step: int,
) -> BudgetError:
    fast, slow = (layers_of(found.keep), layers_of(_whole(graph))) if layers_of else ((), ())
    reasons = obstacles(graph, found.room.limits, fast, slow)
    because = f"; what stands in the way: {'; '.join(reasons)}" if reasons else ""
    others = [
        "a smaller --step" if step > 1 else "",
        "--statistics auto" if constraints.statistics == "keep" else "",
        "fewer constraints" if constraints.exclude or constraints.layers or constraints.min_width > 1 else "",
        "a larger --max-cut" if constraints.max_cut < 1 else "",
    ]
    hint = f"ask for {_rounded_up(found.fastest_ms):g} ms or more, or try {' or '.join(filter(None, others))}"
    return BudgetError(
        f"{budget_ms:.3g} ms are out of reach: the fastest plan is predicted to take {found.fastest_ms:.3g} ms, "
        f"the whole model {found.dense_ms:.3g} ms{because}",
        hint=hint.removesuffix(", or try "),
    )


def with_branches(graph: Graph, order: Order) -> Order:
    """An order for everything a tally may be asked about: a branch is one channel, 0."""
    return {branch.id: np.zeros(1, np.int64) for branch in graph.branches} | dict(order)


def _whole(graph: Graph) -> Keep:
    return {group.id: np.arange(group.size) for group in graph.groups}


def _rounded_up(ms: float) -> float:
    """Three digits, never less than `ms`."""
    unit = 10.0 ** (floor(log10(ms)) - 2)
    return ceil(ms / unit - 1e-9) * unit
