"""How well criteria agree with the oracle: rank correlation with the true loss change of each channel."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor

from deploypruner.channels.criteria import Criterion
from deploypruner.channels.criteria.oracle import Oracle
from deploypruner.channels.normalize import comparable
from deploypruner.channels.statistics import Batch, Scores, score_groups
from deploypruner.graph import Graph


@dataclass(frozen=True)
class Agreement:
    """One criterion beside the oracle.

    Args:
        criterion: Name.
        pooled: Spearman's rank correlation over the channels of all groups, -1 to 1; None where one side is constant.
        within: The mean of the correlations inside each group; None where no group has one.
        seconds: What scoring took.
    """

    criterion: str
    pooled: float | None
    within: float | None
    seconds: float


def agreements(
    graph: Graph,
    criteria: Mapping[str, Criterion],
    batches: Sequence[Batch],
    *,
    truth: Scores | None = None,
    seed: int = 0,
    on_done: Callable[[str], None] = lambda name: None,
) -> list[Agreement]:
    """Score with every criterion and with the oracle, on the same data, and correlate.

    Scores of different groups are made comparable by the criterion's own normalizer; "per_mac" is left out, because
    it is the loss that is compared and not the loss per multiply-add.

    Args:
        graph: The traced model.
        criteria: Name -> criterion.
        batches: (inputs, labels or None); the oracle runs all of them once per channel.
        truth: The oracle's scores where they are known, to look at criteria on other minibatches of the same data.
        seed: For drawn labels and probes.
        on_done: Called with each name, "oracle" first where it runs.

    Returns:
        One per criterion, the best pooled correlation first.

    Raises:
        InputError: As in `score_groups`.
        RecipeError: The same.
    """
    if truth is None:
        truth = oracle(graph, batches, seed=seed)
        on_done("oracle")
    found = []
    for name, criterion in criteria.items():
        begun = time.perf_counter()
        scores = score_groups(graph, criterion, batches, seed=seed)
        seconds = time.perf_counter() - begun
        normalizer = "none" if criterion.normalizer == "per_mac" else criterion.normalizer
        fair = {g.id: comparable(scores[g.id], g, normalizer) for g in graph.groups}
        found.append(Agreement(name, *_correlations(fair, truth), seconds))
        on_done(name)
    return sorted(found, key=lambda a: (-2.0 if a.pooled is None else -a.pooled, a.criterion))


def oracle(graph: Graph, batches: Sequence[Batch], *, seed: int = 0) -> Scores:
    """The true loss change of each channel on all of these minibatches."""
    return score_groups(graph, Oracle(batches=max(1, len(batches))), batches, seed=seed)


def rank_correlation(a: Tensor, b: Tensor) -> float | None:
    """Spearman's, equal values sharing their mean rank; None where one side is constant or there is one value."""
    if min(len(side.unique()) for side in (a, b)) < 2:
        return None
    return float(spearmanr(a.double().numpy(), b.double().numpy()).statistic)


def table(found: Sequence[Agreement]) -> str:
    """Text for a terminal, one line per criterion."""
    head = f"{'criterion':<20}{'all channels':>14}{'within groups':>15}{'seconds':>10}"
    lines = [f"{a.criterion:<20}{_number(a.pooled):>14}{_number(a.within):>15}{a.seconds:>10.2f}" for a in found]
    return "\n".join(["rank correlation with the true loss change", head, *lines]) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _correlations(scores: Scores, truth: Scores) -> tuple[float | None, float | None]:
    """Pooled, and the mean over groups."""
    inside = [r for g in scores if (r := rank_correlation(scores[g], truth[g])) is not None]
    pooled = [torch.cat([side[g].double() for g in scores]) for side in (scores, truth)]
    return rank_correlation(*pooled), sum(inside) / len(inside) if inside else None
