"""Run the scoring data through the model once, collect what the criterion needs, and score every group."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from deploypruner.channels.criteria import DIFFERENTIATED, Criterion, Effort, Needs
from deploypruner.channels.statistics.activity import Activity
from deploypruner.channels.statistics.closing import Closing
from deploypruner.channels.statistics.curvature import GateCurvature, WeightCurvature
from deploypruner.channels.statistics.passes import Batch, BatchPart, Passes
from deploypruner.channels.statistics.slopes import Slopes
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph
from deploypruner.graph.capture.effective_weights import with_effective_weights
from deploypruner.graph.labels.channel_rows import Evidence, member_views
from deploypruner.losses import ModelLoss

__all__ = ["Batch", "Scores", "require_data", "score_groups"]

Scores = dict[str, Tensor]


def score_groups(
    graph: Graph,
    criterion: Criterion,
    batches: Iterable[Batch] | None,
    *,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
    loss: ModelLoss | None = None,
) -> Scores:
    """Score every channel of every group.

    Args:
        graph: The traced model; it is not changed.
        criterion: How to score; of weights that are computed from parameters (weight norm) it sees the result.
        batches: (inputs, labels or None); may be None for a criterion that looks at weights only.
        seed: For the labels drawn where there are none, and for probes.
        on_batch: Called after each batch.
        loss: Of every output; by shape where None.

    Returns:
        Group id -> `[C]` float32 scores, larger means keep.

    Raises:
        RecipeError: The criterion needs data and there is none.
        InputError: A batch gives a loss that is not finite, or the model has no gradient.
    """
    name = _name(criterion)
    require_data(criterion, name, has_data=batches is not None)
    effective = with_effective_weights(graph)
    if effective is None:
        return _scored(graph, criterion, batches, seed=seed, on_batch=on_batch, loss=loss)
    kept = list(batches) if batches is not None and len(effective.places) < len(graph.groups) else batches
    found = _scored(effective.graph, criterion, kept, seed=seed, on_batch=on_batch, loss=loss)
    scores = {
        group: torch.stack([found[owner][channel] for owner, channel in places])
        for group, places in effective.places.items()
    }
    if len(scores) < len(graph.groups):
        scores = {**_scored(graph, criterion, kept, seed=seed, on_batch=lambda: None, loss=loss), **scores}
    return {group.id: scores[group.id] for group in graph.groups}


def _scored(
    graph: Graph,
    criterion: Criterion,
    batches: Iterable[Batch] | None,
    *,
    seed: int,
    on_batch: Callable[[], None],
    loss: ModelLoss | None,
) -> Scores:
    """Scores of a graph whose parameters are the weights of its layers."""
    name, evidence = _name(criterion), None
    if batches is not None and criterion.needs != Needs.WEIGHTS:
        effort = criterion.effort
        passes = Passes(graph, batches, seed=seed, on_batch=on_batch, limit=effort.batches, loss=loss)
        evidence = collect(passes, criterion.needs, effort)
    scores = {}
    for group in graph.groups:
        score = criterion.score(member_views(graph, group, evidence))
        assert score.shape == (group.size,), f"{name} scored {score.shape} for {group.size} channels"
        if not torch.isfinite(score).all():
            raise InputError(
                f"criterion '{name}' gives a score that is not finite for '{group.id}'",
                hint="check the model's weights and the scoring data for NaN and very large values",
            )
        scores[group.id] = score
    return scores


def require_data(criterion: Criterion, name: str, *, has_data: bool) -> None:
    """Refuse to do without data where the criterion looks at more than weights.

    Raises:
        RecipeError: There is none.
    """
    if criterion.needs == Needs.WEIGHTS or has_data:
        return
    looks = "gradients" if criterion.needs & DIFFERENTIATED else "activations"
    looks = "the loss" if criterion.needs & Needs.LOSS else looks
    raise RecipeError(
        f"criterion '{name}' looks at {looks} and needs data",
        hint="pass --data DIR (labels are not required), or use --criterion magnitude",
    )


class Collector(Protocol):
    """One kind of evidence in the making."""

    holds: float  # bytes of a pass / bytes a backward pass needs of one forward pass; 0 where nothing is kept

    def add(self, number: int, parts: Sequence[BatchPart]) -> None:
        """Learn from one minibatch."""

    def evidence(self) -> Evidence:
        """What was learnt."""


def collect(passes: Passes, needs: Needs, effort: Effort) -> Evidence:
    """Everything that is needed, in one walk over the data.

    Raises:
        InputError: No batch, a loss that is not finite, or a model without the derivative that is needed.
    """
    collectors: list[Collector] = []
    if needs & (Needs.GATES | Needs.GRADIENTS):
        gates, weights = bool(needs & Needs.GATES), bool(needs & Needs.GRADIENTS)
        collectors.append(Slopes(passes, gates=gates, weights=weights))
    if needs & Needs.GATE_CURVATURE:
        collectors.append(GateCurvature(passes, effort.probes))
    if needs & Needs.CURVATURE:
        collectors.append(WeightCurvature(passes, effort.probes))
    if needs & Needs.ACTIVATIONS:
        collectors.append(Activity(passes))
    if needs & Needs.LOSS:
        collectors.append(Closing(passes))
    for number, parts in passes.minibatches(holds=max(c.holds for c in collectors)):
        for collector in collectors:
            collector.add(number, parts)
    found = Evidence()
    for collector in collectors:
        found = found.joined(collector.evidence())
    return found


def _name(criterion: Criterion) -> str:
    return type(criterion).__name__.lower()
