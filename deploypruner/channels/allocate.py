"""Scores and a budget to a plan: which channels of which group stay.

Removal is a sequence of *moves*. A move takes the least important block of channels from one group, so that the
width lands on a multiple of the step. The scope orders all moves; the plan is the shortest prefix that meets the
budget, after which every move that can be taken back without breaking the budget is taken back, the most
important first. So the result is below the budget and within one move of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from math import ceil

import numpy as np
from torch import Tensor

from deploypruner.channels.constraints import NARROW, STATISTICS_NOTE, Limit, check_widths, find_limits
from deploypruner.channels.criteria import Normalizer
from deploypruner.channels.equal_pieces import equalised
from deploypruner.channels.feasible_widths import CostOf, Room, by_importance, find_room, most_important
from deploypruner.channels.given_widths import given_widths
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.scope import Move, ordered_moves
from deploypruner.errors import BudgetError, InputError, RecipeError
from deploypruner.graph import Graph
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.registries import normalizers, scopes

__all__ = ["allocate", "reachable", "require_movable"]


_NOTHING = Constraints(max_cut=0, statistics="keep")


def allocate(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    criterion: str,
    scope: str = "global",
    normalizer: Normalizer = "none",
    step: int = 8,
    constraints: Constraints | None = None,
    widths: Mapping[str, int] | None = None,
) -> Plan:
    """Choose what stays.

    Args:
        graph: The traced model.
        scores: Group id -> `[C]`, larger means keep.
        budget: Fraction of the MACs that may remain.
        criterion: Name to record in the plan.
        scope: A registered name.
        normalizer: A registered name; how to compare scores across groups.
        step: Widths become multiples of this, counted in output channels of the layers concerned.
        constraints: What may be cut, and how far.
        widths: Group id -> exactly this many channels stay; constraints do not apply to these groups.

    Returns:
        A plan with macs_after <= budget.macs * macs_before, within one move of it.

    Raises:
        BudgetError: Even the narrowest widths cost more; the message says what is reachable.
        InputError: Nothing can be pruned at all.
        RecipeError: Unknown scope, normalizer or pattern, budget or step out of range; scope "recipe" with a budget,
            or without anything to cut.
        PlanError: `widths` names no group, or a width it cannot have.
    """
    assert budget.macs is not None, "a budget of milliseconds is met by `search`, which measures"
    scopes.check(scope)
    normalizers.check(normalizer)
    if step < 1:
        raise RecipeError(f"--step must be at least 1 channel, got {step}", hint="8, 16 or 32 suit int8 kernels")
    constraints = constraints or Constraints()
    fixed = {**given_widths(graph, constraints, step=step).widths, **(widths or {})}
    check_widths(graph, fixed)
    if scope == "recipe":
        check_recipe_scope(constraints, budget, widths=bool(widths))
    order = by_importance(scores)
    target = budget.macs * graph.costs.macs()
    if budget.macs == 1:
        find_limits(graph, constraints, step=step, statistics=True)  # says which pattern matches nothing
        room, _ = find_room(graph, order, _NOTHING, step=step, cost=_macs(graph), fixed=fixed)
        return make_plan(graph, room.narrowest, criterion=criterion, scope=scope, step=step)
    room, least = find_room(graph, order, constraints, step=step, cost=_macs(graph), fixed=fixed, target=target)
    if least > target:
        require_movable(graph, room.limits, step)
        raise _out_of_reach(graph, budget.macs, int(least), constraints=constraints, step=step)
    start = {g.id: fixed.get(g.id, g.size) for g in graph.groups}
    moves = ordered_moves(graph, scores, room.limits, scope=scope, normalizer=normalizer, tied=room.tied)
    chosen = _shortest_prefix(graph, room, {**start, **fixed}, moves=moves, target=target)
    chosen = {**_take_back(graph, room, chosen, moves=moves, target=target), **fixed}
    return make_plan(graph, most_important(room.order, chosen), criterion=criterion, scope=scope, step=step)


def reachable(graph: Graph, step: int, constraints: Constraints | None = None) -> int:
    """Fewest MACs any plan can have: every group that may be cut at its narrowest width.

    Raises:
        RecipeError: A pattern of the constraints matches nothing.
    """
    constraints = constraints or Constraints()
    order = {g.id: np.arange(g.size) for g in graph.groups}
    fixed = given_widths(graph, constraints, step=step).widths
    return int(find_room(graph, order, constraints, step=step, cost=_macs(graph), fixed=fixed)[1])


def check_recipe_scope(constraints: Constraints, budget: Budget, *, widths: bool = False) -> None:
    """Check what scope "recipe" goes together with.

    Raises:
        RecipeError: A budget beside it, or nothing that says how much to cut.
    """
    if budget.macs != 1:
        raise RecipeError(
            "scope 'recipe' takes every width from the [[prune.layers]] tables, and none from a budget",
            hint="leave out --macs, --latency and --speedup; another scope decides about the groups without a cut",
        )
    if not widths and all(rule.cut is None for rule in constraints.layers):
        raise RecipeError(
            "scope 'recipe' has nothing to cut: no [[prune.layers]] table of the recipe has a cut",
            hint='write match = "layer1.*" and cut = 0.5 into one, or choose another scope',
        )


def _macs(graph: Graph) -> CostOf:
    """Counts the multiply-adds of the narrowest plan."""
    return lambda room: graph.costs.macs(graph.removed(room.narrowest))


# ---------------------------------------------------------------------- choosing


def _shortest_prefix(
    graph: Graph, room: Room, widths: Mapping[str, int], *, moves: Sequence[Move], target: float
) -> dict[str, int]:
    """Widths after as few moves as meet the target (bisection: each move only lowers the cost)."""
    places: dict[str, list[int]] = {}
    for place, move in enumerate(moves):
        places.setdefault(move.group, []).append(place)

    def after(count: int) -> dict[str, int]:
        done = {group: bisect_left(mine, count) for group, mine in places.items()}
        cut = {group: moves[places[group][n - 1]].width for group, n in done.items() if n}
        return equalised(room.tied, {**widths, **cut})

    low, high = 0, len(moves)
    while low < high:
        middle = (low + high) // 2
        if graph.costs.macs(graph.removed(most_important(room.order, after(middle)))) <= target:
            high = middle
        else:
            low = middle + 1
    return after(high)


def _take_back(
    graph: Graph, room: Room, widths: dict[str, int], *, moves: Sequence[Move], target: float
) -> dict[str, int]:
    """Undo the most important moves that fit under the target again, until none does."""
    tally, order = graph.tally(), room.order
    partners = {name: names for names in room.tied for name in names}
    for group, width in widths.items():
        tally.keep(group, order[group][:width])
    for move in sorted(moves, key=lambda m: m.rank, reverse=True):
        if widths[move.group] != move.width:
            continue
        names = partners.get(move.group, (move.group,))
        costs = [tally.keep(name, order[name][: move.before]) for name in names]
        if costs[-1] <= target:
            widths = {**widths, **dict.fromkeys(names, move.before)}
        else:
            for name in names:
                tally.keep(name, order[name][: move.width])
    return widths


# ---------------------------------------------------------------------- refusing


def require_movable(graph: Graph, limits: Mapping[str, Limit], step: int) -> None:
    """Refuse a model in which nothing may be cut at all, with the reason.

    Raises:
        InputError: There is no group, none is wide enough, or none is left by the constraints.
    """
    if any(limits[g.id].narrower(g.size) for g in graph.groups):
        return
    if graph.groups:
        widest = max(graph.groups, key=lambda g: g.size)
        whole = limits[widest.id].whole
        if whole and whole != NARROW:
            why = "a normalisation averages over it" if whole == STATISTICS_NOTE else whole
            raise InputError(
                f"none of the {len(graph.groups)} groups of this model may be cut; the widest, '{widest.id}', "
                f"stays whole: {why}",
                hint="relax --exclude, --min-width, --max-cut, --heads or --statistics",
            )
        raise InputError(
            f"no group of this model can be cut to a multiple of {step} channels; the widest, '{widest.id}', "
            f"has {widest.size}",
            hint="try a smaller --step",
        )
    reasons = dict.fromkeys(f"{f.parameter} ({f.reason})" for f in graph.frozen)
    listed = "; ".join(list(reasons)[:4]) or "it has no convolution or linear layer between input and output"
    raise InputError(f"nothing in this model can be pruned: {listed}", hint="`deploypruner plan` lists every reason")


def _out_of_reach(graph: Graph, asked: float, least: int, *, constraints: Constraints, step: int) -> BudgetError:
    dense = graph.costs.macs()
    fraction = ceil(1000 * least / dense) / 1000
    limits = f"a multiple of {step}, at least {100 * (1 - constraints.max_cut):.0f} % of its channels"
    if constraints != Constraints(max_cut=constraints.max_cut):
        limits += ", within the constraints"
    others = [
        "a smaller --step" if step > 1 else "",
        "--statistics auto" if constraints.statistics == "keep" else "",
        "fewer constraints" if constraints.exclude or constraints.layers or constraints.min_width > 1 else "",
    ]
    hint = f"the smallest reachable budget is --macs {fraction:g}"
    return BudgetError(
        f"--macs {asked:g} allows {asked * dense / 1e6:.2f} M multiply-adds, but cutting every group to "
        f"its narrowest width ({limits}) still costs {least / 1e6:.2f} M of {dense / 1e6:.2f} M",
        hint=", or try ".join([hint, " or ".join(filter(None, others))]).removesuffix(", or try "),
    )
