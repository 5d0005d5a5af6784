"""Rival ways to choose what stays, each as plans of any predicted time, so that all can be tuned to one latency.

`WAYS` names them. A way is a function from a `Subject` to families of plans, the preferred one first. Channels within
a group go in the order of their scores everywhere, except for torch-pruning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peer import CannotPrune, Peer
from deploypruner.channels.allocate import allocate
from deploypruner.channels.constraints import find_limits
from deploypruner.channels.feasible_widths import by_importance, most_important
from deploypruner.errors import BudgetError
from deploypruner.graph import Graph
from deploypruner.latency import LatencyModel
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.search.solve import solve
from deploypruner.train.batches import Batch

Keep = Mapping[str, NDArray[np.int64]]
STEP, CRITERION = 8, "taylor"
_GONE = np.array([], dtype=np.int64)
_GRID, _HALVINGS = 24, 8


@dataclass(frozen=True)
class Subject:
    """What every way may look at.

    Args:
        model: The user's dense model.
        graph: The same, traced.
        scores: Group id -> `[C]`, Taylor's.
        latency: Predicts milliseconds in the setting of the budget.
        scoring: The batches the scores are from.
    """

    model: nn.Module
    graph: Graph
    scores: Mapping[str, Tensor]
    latency: LatencyModel
    scoring: Sequence[Batch]


@dataclass
class Plans:
    """A one-parameter family of plans, whole at place 0 and as fast as it gets at 1.

    Args:
        at: The plan at a place, None where the way has none.
        ms: Predicts milliseconds of a plan.
    """

    at: Callable[[float], Keep | None]
    ms: Callable[[Keep], float]
    _known: dict[float, float | None] = field(default_factory=dict)

    def near(self, ms: float) -> float | None:
        """The place whose plan is predicted closest to `ms`; None where there is no plan at all.

        A scan first, because the time of some ways does not fall steadily; halving then narrows every crossing.
        """
        for low, high in pairwise(i / _GRID for i in range(_GRID + 1)):
            for _ in range(_HALVINGS):
                ends, middle = (self._look(low), self._look(high)), (low + high) / 2
                if ends[0] is None or ends[1] is None or (ends[0] - ms) * (ends[1] - ms) > 0:
                    break
                found = self._look(middle)
                low, high = (low, middle) if found is None or (ends[0] - ms) * (found - ms) <= 0 else (middle, high)
        known = {place: found for place, found in self._known.items() if found is not None}
        return min(known, key=lambda place: abs(known[place] - ms)) if known else None

    def _look(self, place: float) -> float | None:
        if place not in self._known:
            keep = self.at(place)
            self._known[place] = None if keep is None else self.ms(keep)
        return self._known[place]


def same(one: Keep, other: Keep) -> bool:
    """Are two plans equal?"""
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------------- widths only


def uniform(subject: Subject) -> list[Plans]:
    """The same share of every group, to the nearest step; where several groups are as near, one after the other.

    The last ones of the network first, or else the first ones: cutting the first residual stream is a large step.
    """
    return [shares(subject), shares(subject, last_first=False)]


def shares(
    subject: Subject,
    dropped: Sequence[str] = (),
    *,
    last_first: bool = True,
    weights: Mapping[str, float] | None = None,
) -> Plans:
    """Widths by one share.

    Args:
        subject: What is pruned.
        dropped: Ids of branches that are gone in all plans.
        last_first: Which of several groups that are as near to the share is cut first.
        weights: Group id -> a factor on what is cut of it, 1 where None.
    """
    graph, order = subject.graph, by_importance(subject.scores)
    limits = find_limits(graph, Constraints(), step=STEP, statistics=False)
    inside = {group for branch in graph.branches if branch.id in dropped for group in branch.groups}
    rungs: list[tuple[float, int, str, int]] = []
    for number, group in enumerate(graph.groups):
        if limits[group.id].whole or group.id in inside:
            continue
        widths = [group.size, *limits[group.id].narrower(group.size)]
        turn = number if last_first else -number
        weight = weights[group.id] if weights else 1.0
        rungs += [((1 - (a + b) / 2 / group.size) / weight, -turn, group.id, b) for a, b in pairwise(widths)]
    rungs.sort()
    gone = dict.fromkeys(dropped, _GONE)

    def at(place: float) -> Keep:
        taken = rungs[: round(place * len(rungs))]
        widths = {g.id: g.size for g in graph.groups} | {group_id: width for _, _, group_id, width in taken}
        return filled(graph, {**most_important(order, widths), **gone}, order)

    return Plans(at, subject.latency.ms)


def macs(subject: Subject) -> list[Plans]:
    """The global threshold on scores that a budget of MACs gives."""

    def at(place: float) -> Keep | None:
        if place == 0:
            return dict[str, NDArray[np.int64]]()
        try:
            budget = Budget(macs=max(1 - place, 0.01))
            return allocate(subject.graph, subject.scores, budget, criterion=CRITERION, step=STEP).keep
        except BudgetError:
            return None

    return [Plans(at, subject.latency.ms)]


@dataclass
class Solved(Plans):
    """Plans of the latency solver: asked for a time, it needs no scan."""

    def near(self, ms: float) -> float | None:
        """See `Plans.near`."""
        return max(0.0, 1 - ms / self.ms({}))


def solver(subject: Subject) -> list[Plans]:
    """The latency solver on Taylor's sums, residual branches kept: what a budget of time gave until November 2026."""
    depth = Constraints(depth="keep")

    def at(place: float) -> Keep | None:
        budget_ms, tally = subject.latency.ms({}) * (1 - place), subject.latency.tally
        try:
            return solve(subject.graph, subject.scores, tally, budget_ms, step=STEP, constraints=depth).keep
        except BudgetError:
            return None

    return [Solved(at, subject.latency.ms)]


def torch_pruning(subject: Subject) -> list[Plans]:
    """torch-pruning's global ranking by GroupTaylorImportance, its pruning ratio searched.

    In steps of 8, or else of 1: its rounding leaves whole what it would round to nothing.
    """
    return [_torch_pruning(subject, step) for step in (STEP, 1)]


def _torch_pruning(subject: Subject, step: int) -> Plans:
    peer = Peer.of(subject.model, subject.graph, subject.scoring, step=step)

    def at(place: float) -> Keep | None:
        try:
            return peer.keep(place * 0.98)
        except CannotPrune:
            return None

    return Plans(at, subject.latency.ms)


# ---------------------------------------------------------------------- blocks


def dropping(subject: Subject, order: Sequence[str]) -> list[Plans]:
    """Residual branches one after the other, then uniform widths; a few widths bridge the gap to the next branch.

    No family at all for a network without branches.

    Args:
        subject: What is pruned.
        order: Ids of branches, the first to go first.
    """
    if not order:
        return []
    ms = subject.latency.ms
    on_top = [shares(subject, order[:count]) for count in range(len(order) + 1)]
    alone = [ms(dict.fromkeys(order[:count], _GONE)) for count in range(len(order) + 1)]
    bridges: dict[int, float | None] = {}

    def at(place: float) -> Keep | None:
        count = int(2 * place * len(order))
        if count >= len(order):
            return on_top[-1].at(2 * place - 1)
        if count not in bridges:
            bridges[count] = on_top[count].near(alone[count + 1])
        return on_top[count].at((2 * place * len(order) - count) * (bridges[count] or 0.0))

    return [Plans(at, ms)]


def every_second_block(subject: Subject) -> list[Plans]:
    """Every second residual branch, spread evenly where fewer have to go; uniform widths where that is not enough."""
    half = [branch.id for branch in subject.graph.branches][::2]
    # Counted in bit-reversed order, any first few are spread over the depth.
    bits = max(1, (len(half) - 1).bit_length())
    return dropping(subject, [half[i] for i in sorted(range(len(half)), key=lambda i: f"{i:0{bits}b}"[::-1])])


def filled(graph: Graph, keep: Keep, order: Keep) -> Keep:
    """The plan with what has to stay so that no tensor is left without a channel."""
    full = dict(keep)
    while emptied := graph.emptied(full, order):
        for group, channels in emptied.items():
            full[group] = np.union1d(full[group], sorted(channels))
    return full


WAYS: dict[str, Callable[[Subject], list[Plans]]] = {
    "uniform": uniform,
    "macs": macs,
    "solver": solver,
    "torch-pruning": torch_pruning,
    "every-second-block": every_second_block,
}


def by_kl(subject: Subject, kl: Mapping[str, float]) -> list[Plans]:
    """Branches in the order of their measured KL to the dense outputs, the smallest first; then uniform widths."""
    return dropping(subject, sorted(kl, key=kl.__getitem__))


def measured_kl(graph: Graph, batches: Sequence[Batch]) -> dict[str, float]:
    """Branch id -> mean KL of the dense outputs to those without the branch alone, nats per sample."""
    dense = outputs_of(graph.module, batches)
    gone = {branch.id: graph.cut(graph.removed({branch.id: _GONE})) for branch in graph.branches}
    return {name: mean_kl(dense, outputs_of(module, batches)) for name, module in gone.items()}


@torch.no_grad()
def outputs_of(module: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Logits `[N, K]` in evaluation mode."""
    module.eval()
    return torch.cat([module(*inputs) for inputs, _ in batches])


def mean_kl(dense: Tensor, pruned: Tensor) -> float:
    """Mean over samples of KL(dense || pruned), nats; logits `[N, K]`."""
    kl = partial(torch.nn.functional.kl_div, reduction="batchmean", log_target=True)
    return float(kl(pruned.log_softmax(1), dense.log_softmax(1)))
