"""How far a model may be cut at all: the same for every kind of budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
import torch
from torch import Tensor

from deploypruner.channels.constraints import Limit, find_limits
from deploypruner.channels.depth import floors, held_branches
from deploypruner.channels.equal_pieces import equal_pieces
from deploypruner.errors import PlanError
from deploypruner.graph import Graph
from deploypruner.graph.labels.atoms import IntArray
from deploypruner.recipe.constraints import Constraints

Order = Mapping[str, IntArray]
# What keeping exactly these channels costs, in the unit of the budget, with those orders of channels.
CostOf = Callable[["Room"], float]


@dataclass(frozen=True)
class Room:
    """How far a model may be cut.

    Args:
        limits: Group id -> limit.
        order: Group id -> channels, what has to stay first, then by importance; a branch that may go has one, 0.
        narrowest: What every group keeps at the least; nothing of a branch that may go.
        held: Branch id -> why it stays, "" where it may go.
        tied: Ids of groups that have to have the same width, one tuple for each such set.
    """

    limits: Mapping[str, Limit]
    order: Order
    narrowest: Mapping[str, IntArray]
    held: Mapping[str, str] = field(default_factory=dict)
    tied: tuple[tuple[str, ...], ...] = ()


def find_room(
    graph: Graph,
    order: Order,
    constraints: Constraints,
    *,
    step: int,
    cost: CostOf,
    target: float = 0,
    fixed: Mapping[str, int] | None = None,
    depth: bool = False,
) -> tuple[Room, float]:
    """Groups that change statistics are left out of the room unless they must help to get below `target`.

    So are, where branches may go, widths below the floors of `channels.depth`.

    Args:
        graph: The traced model.
        order: Group id -> all its channels, the most important first.
        constraints: What may be cut, and how far.
        step: Widths become multiples of this, counted in output channels of the layers concerned.
        cost: What the narrowest plan of a room costs.
        target: The budget, in the same unit.
        fixed: Group id -> exactly this many channels stay.
        depth: May whole residual branches go, as far as the constraints allow it?

    Returns:
        The room, and what its narrowest plan costs.

    Raises:
        RecipeError: A pattern of the constraints matches nothing.
        PlanError: A fixed width leaves some tensor without an index.
    """
    policies = {"auto": (False, True), "keep": (False,), "prune": (True,)}[constraints.statistics]
    least_widths = [floors(graph), dict[str, int]()] if depth else [dict[str, int]()]
    held = held_branches(graph, constraints) if depth else {}
    tied = equal_pieces(graph) if constraints.pieces == "equal" else ()
    tied = tuple(names for names in tied if not set(names) & set(fixed or ()))  # what was said goes
    for statistics, floor in product(policies, least_widths):
        limits = find_limits(graph, constraints, step=step, statistics=statistics)
        limits = {g: replace(limit, least=max(limit.least, floor.get(g, 0))) for g, limit in limits.items()}
        room = _with_branches(_without_empty_tensors(graph, order, limits, fixed=fixed or {}), held)
        room = replace(room, tied=tied)
        least = cost(room)
        if least <= target:
            break
    return room, least


def by_importance(scores: Mapping[str, Tensor]) -> dict[str, IntArray]:
    """Group id -> its channels, the most important first; equal ones by number."""
    return {g: torch.argsort(score, descending=True, stable=True).numpy() for g, score in scores.items()}


def most_important(order: Order, widths: Mapping[str, int]) -> dict[str, IntArray]:
    """Group id -> the first channels of its order, ascending."""
    return {group: np.sort(order[group][:width]) for group, width in widths.items()}


def _with_branches(room: Room, held: Mapping[str, str]) -> Room:
    """The same room, in which branches may go too."""
    free = [branch for branch, why in held.items() if not why]
    return Room(
        room.limits,
        {**room.order, **{branch: np.zeros(1, np.int64) for branch in free}},
        {**room.narrowest, **{branch: np.empty(0, np.int64) for branch in free}},
        held,
    )


def _without_empty_tensors(
    graph: Graph, order: Order, limits: Mapping[str, Limit], *, fixed: Mapping[str, int]
) -> Room:
    """Put channels first without which the narrowest plan would leave a tensor without an index."""
    pins: dict[str, set[int]] = {}
    limits = {g: replace(limit, whole="its width is given") if g in fixed else limit for g, limit in limits.items()}
    while True:
        widths = {g.id: fixed.get(g.id, min(limits[g.id].narrower(g.size), default=g.size)) for g in graph.groups}
        narrowest = most_important(order, widths)
        emptied = graph.emptied(narrowest, order)
        if not emptied:
            return Room(limits, order, narrowest)
        for group, channels in emptied.items():
            pins.setdefault(group, set()).update(channels)
            if len(pins[group]) > fixed.get(group, len(order[group])):
                raise PlanError(
                    f"with {fixed[group]} channels of '{group}' some tensor has none left",
                    hint=f"keep at least {len(pins[group])}",
                )
            limits = {**limits, group: replace(limits[group], least=max(limits[group].least, len(pins[group])))}
        order = {g: _first(channels, pins.get(g, set())) for g, channels in order.items()}


def _first(channels: IntArray, pins: set[int]) -> IntArray:
    """The same channels, `pins` at the front."""
    pinned = np.isin(channels, sorted(pins))
    return np.concatenate([channels[pinned], channels[~pinned]])
