"""What the time of a layer goes by: arithmetic, memory, or neither."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from deploypruner.report.document import LayerWidth

# Share of the best rate in this network, of multiply-adds and of weights, below which a layer is bound by neither.
_FAR = 0.15


def bounds(layers: Sequence[LayerWidth]) -> tuple[LayerWidth, ...]:
    """The same with `bound`: a roofline whose roof is the best layer of this network, in this runtime.

    A layer whose multiply-adds come nearer to the fastest layer's per millisecond is bound by compute, one whose
    weights do by memory; one that is far from both waits for something else: launching, conversions, small sizes.

    Source:
        After Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; taking the roof from the layers themselves,
        and weights for all traffic, is ours.
    """
    rates = [_rates(layer) for layer in layers]
    known = [rate for rate in rates if rate is not None]
    best = [max((rate[i] for rate in known), default=0.0) for i in (0, 1)]

    def bound(rate: tuple[float, float] | None) -> str:
        if rate is None or min(best) <= 0:
            return ""
        compute, memory = rate[0] / best[0], rate[1] / best[1]
        return "overhead" if max(compute, memory) < _FAR else "compute" if compute >= memory else "memory"

    return tuple(replace(layer, bound=bound(rate)) for layer, rate in zip(layers, rates, strict=True))


def _rates(layer: LayerWidth) -> tuple[float, float] | None:
    """Multiply-adds and weights a millisecond, of the pruned layer."""
    ms = None if layer.ms is None else layer.ms[1]
    if not ms or layer.macs is None or layer.params is None:
        return None
    return layer.macs[1] / ms, layer.params[1] / ms
