"""What stands in the way of a faster plan, in a user's words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

from deploypruner.channels.constraints import Limit
from deploypruner.graph import Graph

# Layers are named until this share of the time is, and at most this many.
_EXPLAINED, _NAMED = 0.6, 4
# A layer that keeps this much of its dense time does not shrink.
_STUBBORN = 0.8
_REASONS = 3


class TimedLayer(Protocol):
    """Predicted time of one executed layer."""

    @property
    def name(self) -> str:
        """As the runtime or the model calls it."""

    @property
    def kind(self) -> str:
        """What it computes."""

    @property
    def ms(self) -> float:
        """Milliseconds of one inference."""


def obstacles(
    graph: Graph,
    limits: Mapping[str, Limit],
    fastest: Sequence[TimedLayer],
    dense: Sequence[TimedLayer] = (),
) -> list[str]:
    """Why no plan is faster than the fastest.

    Args:
        graph: The traced model.
        limits: Group id -> how far it may be cut; `Room.limits`, `find_limits`.
        fastest: Layers of the fastest plan.
        dense: Layers of the whole model, for telling which do not shrink; may be empty.

    Returns:
        Phrases, the most telling first, each ready to stand in a list; empty where there is nothing to say.
    """
    return [*_slow(fastest), *_stubborn(fastest, dense), *_whole(graph, limits), *_frozen(graph)]


def _slow(layers: Sequence[TimedLayer]) -> list[str]:
    total = sum(layer.ms for layer in layers)
    if total <= 0:
        return []
    slowest, shown = sorted(layers, key=lambda layer: -layer.ms), list[TimedLayer]()
    for layer in slowest[:_NAMED]:
        shown.append(layer)
        if sum(x.ms for x in shown) >= _EXPLAINED * total:
            break
    share = sum(layer.ms for layer in shown) / total
    return [f"{100 * share:.0f} % of its time is in {_listed(shown)}, of {len(layers)} layers"]


def _stubborn(fastest: Sequence[TimedLayer], dense: Sequence[TimedLayer]) -> list[str]:
    total, before = sum(layer.ms for layer in fastest), dict[str, float]()
    for layer in dense:
        before[layer.name] = before.get(layer.name, 0.0) + layer.ms
    kept = [x for x in fastest if x.ms >= _STUBBORN * before.get(x.name, float("inf")) and x.ms > 0]
    if not kept or total <= 0:
        return []
    share = sum(layer.ms for layer in kept) / total
    slowest = sorted(kept, key=lambda layer: -layer.ms)[:_NAMED]
    return [
        f"{100 * share:.0f} % of its time is in {_count(len(kept), 'layer')} that hardly shrink: {_listed(slowest)}"
    ]


def _whole(graph: Graph, limits: Mapping[str, Limit]) -> list[str]:
    reasons = Counter(limits[g.id].whole for g in graph.groups if limits[g.id].whole)
    if not reasons:
        return []
    told = ", ".join(f"{count} {why}" for why, count in reasons.most_common(_REASONS))
    return [f"{sum(reasons.values())} of {_count(len(graph.groups), 'group')} stay whole: {told}"]


def _frozen(graph: Graph) -> list[str]:
    reasons, layers = Counter[str](), dict[str, set[str]]()
    for entry in graph.frozen:
        reasons[entry.reason] += entry.count
        layers.setdefault(entry.reason, set()).add(entry.parameter)
    if not reasons:
        return []
    told = ", ".join(
        f"{why} ({count:,} of {_count(len(layers[why]), 'layer')})" for why, count in reasons.most_common(_REASONS)
    )
    return [f"channels that cannot be removed: {told}"]


def _listed(layers: Sequence[TimedLayer]) -> str:
    return ", ".join(f"{layer.name} ({layer.ms:.3g} ms)" for layer in layers)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
