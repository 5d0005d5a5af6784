"""Scores and a budget to a plan: which channels of which group stay.

Removal is a sequence of *moves*. A move takes the least important block of channels from one group, so that the
width lands on a multiple of the step. The scope orders all moves; the plan is the shortest prefix that meets the
budget, after which every move that can be taken back without breaking the budget is taken back, the most
important first. So the result is below the budget and within one move of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, gcd
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deploypruner.criteria import Normalizer
from deploypruner.errors import BudgetError, InputError, RecipeError, nearest
from deploypruner.graph import Graph
from deploypruner.prune.plan import GroupPlan, Plan, members_of
from deploypruner.records import Budget, Group, TensorSpec

Scope = Literal["uniform", "global"]
SCOPES = {
    "uniform": "the same fraction of channels of every group",
    "global": "the least important channels of the whole network, wherever they are",
}
PATTERNS = {"channel": "whole channels, physically removed: the model stays dense and smaller"}
# A group is never cut below this share of its channels: small layers would be emptied by a global ranking.
_FLOOR = 0.1


@dataclass(frozen=True)
class Move:
    """Cut `group` from its current width down to `width`; `rank` orders moves, lowest first."""

    group: str
    width: int
    rank: float


def check_budget(budget: Budget) -> None:
    """Raise RecipeError unless 0 < macs <= 1."""
    if not 0 < budget.macs <= 1:
        raise RecipeError(
            f"--macs is the fraction of multiply-adds that remain, 0 < macs <= 1, got {budget.macs:g}",
            hint="0.5 keeps half of them",
        )


def allocate(
    graph: Graph,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    criterion: str,
    scope: str = "global",
    normalizer: Normalizer = "none",
    step: int = 8,
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

    Returns:
        A plan with macs_after <= budget.macs * macs_before, within one move of it.

    Raises:
        BudgetError: Even the narrowest widths cost more; the message says what is reachable.
        InputError: Nothing can be pruned at all.
        RecipeError: Unknown scope, budget or step out of range.
    """
    check_budget(budget)
    if scope not in SCOPES:
        raise RecipeError(f"no scope called '{scope}'", hint=nearest(scope, SCOPES))
    if step < 1:
        raise RecipeError(f"--step must be at least 1 channel, got {step}", hint="8, 16 or 32 suit int8 kernels")
    order = {
        group_id: torch.argsort(score, descending=True, stable=True).numpy() for group_id, score in scores.items()
    }
    widths = {g.id: g.size for g in graph.groups}
    moves = sorted(_moves(graph, scores, scope, normalizer, step), key=lambda m: (m.rank, m.group, -m.width))
    target = budget.macs * graph.costs.macs()
    if budget.macs < 1:
        _require_moves(graph, moves, step)
        chosen = _shortest_prefix(graph, order, widths, moves, target)
        if chosen is None:
            raise _out_of_reach(graph, budget, step)
        widths = _take_back(graph, order, chosen, moves, target)
    return make_plan(graph, _keep(graph, order, widths), criterion=criterion, scope=scope, step=step)


def make_plan(graph: Graph, keep: Mapping[str, np.ndarray], *, criterion: str, scope: str, step: int) -> Plan:
    """A plan from kept channels per group, however they were chosen; groups not named stay whole."""
    whole = {g.id: keep[g.id] if g.id in keep else np.arange(g.size) for g in graph.groups}
    before, after = graph.cost(), graph.cost(whole)
    return Plan(
        groups=tuple(
            GroupPlan(g.id, g.size, tuple(int(c) for c in np.sort(whole[g.id])), members_of(graph, g.id))
            for g in graph.groups
        ),
        criterion=criterion,
        scope=scope,
        step=step,
        inputs=input_specs(graph),
        macs_before=before.macs,
        macs_after=after.macs,
        params_before=before.params,
        params_after=after.params,
    )


def input_specs(graph: Graph) -> tuple[TensorSpec, ...]:
    """Name, shape and dtype of the model's inputs; the batch is None where it is dynamic."""
    specs = []
    for node in graph.module.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor):
            sizes = [s if isinstance(s, int) else None for s in value.shape]
            specs.append(TensorSpec(node.name, tuple(sizes), str(value.dtype).removeprefix("torch.")))
    return tuple(specs)


def reachable(graph: Graph, step: int) -> int:
    """Fewest MACs any plan can have: every group at its narrowest width."""
    keep = {}
    for group in graph.groups:
        narrower = _narrower(group, step) if _may_shrink(group) else []
        if narrower:
            keep[group.id] = np.arange(narrower[-1])
    return graph.costs.macs(graph.removed(keep))


# ---------------------------------------------------------------------- moves


def _moves(
    graph: Graph, scores: Mapping[str, Tensor], scope: str, normalizer: Normalizer, step: int
) -> Sequence[Move]:
    moves = []
    for group in graph.groups:
        if not _may_shrink(group):
            continue
        ascending = _comparable(scores[group.id].double(), group, normalizer).sort().values
        width = group.size
        for new in _narrower(group, step):
            block = ascending[group.size - width : group.size - new]
            rank = 1 - new / group.size if scope == "uniform" else float(block.mean())
            moves.append(Move(group.id, new, rank))
            width = new
    return moves


def _may_shrink(group: Group) -> bool:
    return not (group.secondary or group.changes_statistics)


def _narrower(group: Group, step: int) -> list[int]:
    """Widths the group may be cut to, widest first.

    One channel of a group can stand for several output channels (a column of a grouped convolution); the step
    counts output channels.
    """
    per_channel = min((m.index.shape[1] for m in group.members if m.axis == 0), default=1)
    unit = step // gcd(step, per_channel)
    floor = max(unit, ceil(_FLOOR * group.size))
    return [width for width in range((group.size - 1) // unit * unit, 0, -unit) if width >= floor]


def _comparable(score: Tensor, group: Group, normalizer: Normalizer) -> Tensor:
    if normalizer == "none":
        return score
    if normalizer == "per_mac":
        return score / max(group.macs_per_channel, 1.0)
    scale = score.mean() if normalizer == "mean" else score.max()
    return score / scale.clamp_min(torch.finfo(score.dtype).tiny)


# ---------------------------------------------------------------------- choosing


def _keep(graph: Graph, order: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The most important channels of each group, and whatever keeps every tensor from becoming empty."""
    keep = {group_id: np.sort(order[group_id][:width]) for group_id, width in widths.items()}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], np.array(sorted(channels), dtype=np.int64))
    return keep


def _macs(graph: Graph, order: Mapping[str, np.ndarray], widths: Mapping[str, int]) -> int:
    keep = {g: order[g][:width] for g, width in widths.items() if width < len(order[g])}
    return graph.costs.macs(graph.removed(keep))


def _after(widths: Mapping[str, int], moves: Sequence[Move]) -> dict[str, int]:
    return {**widths, **{m.group: m.width for m in moves}}


def _shortest_prefix(
    graph: Graph, order: Mapping[str, np.ndarray], widths: Mapping[str, int], moves: Sequence[Move], target: float
) -> dict[str, int] | None:
    """Widths after as few moves as meet the target (bisection: each move only lowers the cost)."""
    low, high = 0, len(moves)
    if _macs(graph, order, _after(widths, moves)) > target:
        return None
    while low < high:
        middle = (low + high) // 2
        if _macs(graph, order, _after(widths, moves[:middle])) <= target:
            high = middle
        else:
            low = middle + 1
    return _after(widths, moves[:high])


def _take_back(
    graph: Graph, order: Mapping[str, np.ndarray], widths: dict[str, int], moves: Sequence[Move], target: float
) -> dict[str, int]:
    """Undo the most important moves that fit under the target again, until none does."""
    before = {(m.group, m.width): len(order[m.group]) for m in moves}
    for earlier, later in _consecutive(moves):
        before[later.group, later.width] = earlier.width
    for move in sorted(moves, key=lambda m: m.rank, reverse=True):
        if widths[move.group] != move.width:
            continue
        wider = {**widths, move.group: before[move.group, move.width]}
        if _macs(graph, order, wider) <= target:
            widths = wider
    return widths


def _consecutive(moves: Sequence[Move]) -> list[tuple[Move, Move]]:
    by_group: dict[str, list[Move]] = {}
    for move in sorted(moves, key=lambda m: -m.width):
        by_group.setdefault(move.group, []).append(move)
    return [pair for group in by_group.values() for pair in pairwise(group)]


# ---------------------------------------------------------------------- refusing


def _require_moves(graph: Graph, moves: Sequence[Move], step: int) -> None:
    if moves:
        return
    if graph.groups:
        widest = max(graph.groups, key=lambda g: g.size)
        raise InputError(
            f"no group of this model can be cut to a multiple of {step} channels; the widest, '{widest.id}', "
            f"has {widest.size}",
            hint="try a smaller --step",
        )
    reasons = dict.fromkeys(f"{f.parameter} ({f.reason})" for f in graph.frozen)
    listed = "; ".join(list(reasons)[:4]) or "it has no convolution or linear layer between input and output"
    raise InputError(f"nothing in this model can be pruned: {listed}", hint="`deploypruner plan` lists every reason")


def _out_of_reach(graph: Graph, budget: Budget, step: int) -> BudgetError:
    dense, least = graph.costs.macs(), reachable(graph, step)
    fraction = ceil(1000 * least / dense) / 1000
    return BudgetError(
        f"--macs {budget.macs:g} allows {budget.macs * dense / 1e6:.2f} M multiply-adds, but cutting every group to "
        f"its narrowest width (a multiple of {step}, at least {_FLOOR:.0%} of its channels) still costs "
        f"{least / 1e6:.2f} M of {dense / 1e6:.2f} M",
        hint=f"the smallest reachable budget is --macs {fraction:g}"
        + (", or try a smaller --step" if step > 1 else ""),
    )
