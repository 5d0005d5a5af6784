"""Scores and a budget to a plan: which channels of which group stay.

Removal is a sequence of *moves*. A move takes the least important block of channels from one group, so that the
width lands on a multiple of the step. The scope orders all moves; the plan is the shortest prefix that meets the
budget, after which every move that can be taken back without breaking the budget is taken back, the most
important first. So the result is below the budget and within one move of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

import numpy as np
from torch import Tensor

from deploypruner.budget import Budget
from deploypruner.criteria import Normalizer
from deploypruner.errors import BudgetError, InputError, RecipeError, nearest
from deploypruner.graph import Graph
from deploypruner.prune.constraints import NARROW, STATISTICS_NOTE, Constraints, Limit, check_widths, find_limits
from deploypruner.prune.plan import Plan, make_plan
from deploypruner.prune.room import CostOf, Order, by_importance, comparable, find_room, most_important

Scope = Literal["uniform", "global"]
SCOPES = {
    "uniform": "the same fraction of channels of every group",
    "global": "the least important channels of the whole network, wherever they are",
}

_NOTHING = Constraints(max_cut=0, statistics="keep")


@dataclass(frozen=True)
class Move:
    """Cut `group` from width `before` down to `width`; `rank` orders moves, lowest first."""

    group: str
    before: int
    width: int
    rank: float


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
        scope: "uniform" or "global".
        normalizer: How to compare scores across groups in the global scope.
        step: Widths become multiples of this, counted in output channels of the layers concerned.
        constraints: What may be cut, and how far.
        widths: Group id -> exactly this many channels stay; constraints do not apply to these groups.

    Returns:
        A plan with macs_after <= budget.macs * macs_before, within one move of it.

    Raises:
        BudgetError: Even the narrowest widths cost more; the message says what is reachable.
        InputError: Nothing can be pruned at all.
        RecipeError: Unknown scope or pattern, budget or step out of range.
        PlanError: `widths` names no group, or a width it cannot have.
    """
    assert budget.macs is not None, "a budget of milliseconds is met by `search`, which measures"
    if scope not in SCOPES:
        raise RecipeError(f"no scope called '{scope}'", hint=nearest(scope, SCOPES))
    if step < 1:
        raise RecipeError(f"--step must be at least 1 channel, got {step}", hint="8, 16 or 32 suit int8 kernels")
    constraints, fixed = constraints or Constraints(), dict(widths or {})
    check_widths(graph, fixed)
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
    moves = _moves(graph, scores, room.limits, scope=scope, normalizer=normalizer)
    chosen = _shortest_prefix(graph, room.order, start, moves=moves, target=target)
    chosen = _take_back(graph, room.order, chosen, moves=moves, target=target)
    return make_plan(graph, most_important(room.order, chosen), criterion=criterion, scope=scope, step=step)


def reachable(graph: Graph, step: int, constraints: Constraints | None = None) -> int:
    """Fewest MACs any plan can have: every group that may be cut at its narrowest width.

    Raises:
        RecipeError: A pattern of the constraints matches nothing.
    """
    order = {g.id: np.arange(g.size) for g in graph.groups}
    return int(find_room(graph, order, constraints or Constraints(), step=step, cost=_macs(graph))[1])


def _macs(graph: Graph) -> CostOf:
    """Counts the multiply-adds of the narrowest plan."""
    return lambda room: graph.costs.macs(graph.removed(room.narrowest))


# ---------------------------------------------------------------------- moves


def _moves(
    graph: Graph, scores: Mapping[str, Tensor], limits: Mapping[str, Limit], *, scope: str, normalizer: Normalizer
) -> list[Move]:
    """Every cut that is allowed, in the order of the scope."""
    moves = []
    for group in graph.groups:
        widths = np.array([group.size, *limits[group.id].narrower(group.size)])
        if len(widths) == 1:
            continue
        if scope == "uniform":
            ranks = 1 - widths[1:] / group.size
        else:
            ascending = np.sort(comparable(scores[group.id].double(), group, normalizer).numpy())
            blocks = np.add.reduceat(ascending[: group.size - widths[-1]], group.size - widths[:-1])
            # A block is never less important than the one before it, except by rounding.
            ranks = np.maximum.accumulate(blocks / -np.diff(widths))
        steps = zip(widths[:-1].tolist(), widths[1:].tolist(), ranks.tolist(), strict=True)
        moves += [Move(group.id, before, width, rank) for before, width, rank in steps]
    return sorted(moves, key=lambda m: (m.rank, m.group, -m.width))


# ---------------------------------------------------------------------- choosing


def _shortest_prefix(
    graph: Graph, order: Order, widths: Mapping[str, int], *, moves: Sequence[Move], target: float
) -> dict[str, int]:
    """Widths after as few moves as meet the target (bisection: each move only lowers the cost)."""
    places: dict[str, list[int]] = {}
    for place, move in enumerate(moves):
        places.setdefault(move.group, []).append(place)

    def after(count: int) -> dict[str, int]:
        done = {group: bisect_left(mine, count) for group, mine in places.items()}
        return {**widths, **{group: moves[places[group][n - 1]].width for group, n in done.items() if n}}

    low, high = 0, len(moves)
    while low < high:
        middle = (low + high) // 2
        if graph.costs.macs(graph.removed(most_important(order, after(middle)))) <= target:
            high = middle
        else:
            low = middle + 1
    return after(high)


def _take_back(
    graph: Graph, order: Order, widths: dict[str, int], *, moves: Sequence[Move], target: float
) -> dict[str, int]:
    """Undo the most important moves that fit under the target again, until none does."""
    tally = graph.tally()
    for group, width in widths.items():
        tally.keep(group, order[group][:width])
    for move in sorted(moves, key=lambda m: m.rank, reverse=True):
        if widths[move.group] != move.width:
            continue
        if tally.keep(move.group, order[move.group][: move.before]) <= target:
            widths = {**widths, move.group: move.before}
        else:
            tally.keep(move.group, order[move.group][: move.width])
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
    limits = f"a multiple of {step}, at least {1 - constraints.max_cut:.0%} of its channels"
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
