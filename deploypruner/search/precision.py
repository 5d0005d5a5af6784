"""Int8 or float for every layer: the least predicted time whose error stays within a bound.

A mix is the set of layers that stay float. Times are of layers inside the network (`latency.layer_times`), errors of
one layer alone (`quantize.sensitivity`); both add up, but for the conversions between int8 and float layers.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

# A layer counts as slower in int8 beyond this much: counters are whole microseconds, and the machine is never still.
_CLEARLY, _CLEARLY_MS = 0.05, 0.003
# Nanoseconds for each number that passes between an int8 and a float layer, with the change of layout it brings.
# Measured on a Zen 4 with AVX-512 VNNI in ResNet-18 at 224 x 224; it only proposes mixes, a measurement takes them.
_BORDER_NS = {"openvino": 0.2, "openvino-bf16": 0.2, "onnxruntime": 0.9}
_BORDER_MS = 0.002
_SMALLEST = 1e-12
# What int8 is taken to give at least, where layers are compared by error for each millisecond: a counter's step.
_COUNTED_MS = 0.001

Mix = frozenset[str]
Choice = Literal["int8", "float"]


@dataclass(frozen=True)
class LayerCosts:
    """What both choices cost in one runtime, in milliseconds.

    Args:
        as_float: Layer -> in the float file.
        as_int8: Layer -> in the all-int8 file.
        borders: (layer, the next one) -> of the conversion where one is int8 and the other is not.
    """

    as_float: Mapping[str, float]
    as_int8: Mapping[str, float]
    borders: Mapping[tuple[str, str], float]

    def ms(self, mix: Collection[str]) -> float:
        """Predicted milliseconds of a mix; attention and all else that is never int8 included."""
        layers = self.as_float.keys() | self.as_int8.keys()
        own = sum(self._own(layer, layer in mix) for layer in layers)
        return own + sum(ms for (a, b), ms in self.borders.items() if (a in mix) != (b in mix))

    def gain(self, layer: str) -> float:
        """Milliseconds that int8 saves in a layer, borders aside; negative where it costs time."""
        return self._own(layer, True) - self._own(layer, False)

    def slower(self, layer: str) -> bool:
        """Is a layer clearly slower in int8?"""
        return -self.gain(layer) > max(_CLEARLY_MS, _CLEARLY * self._own(layer, True))

    def _own(self, layer: str, as_float: bool) -> float:
        first, second = (self.as_float, self.as_int8) if as_float else (self.as_int8, self.as_float)
        return first.get(layer, second.get(layer, 0.0))


def border_ms(runtime: str, sizes: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], float]:
    """What conversions are expected to take, from the numbers that pass."""
    each = _BORDER_NS.get(runtime, max(_BORDER_NS.values())) / 1e6
    return {pair: _BORDER_MS + each * size for pair, size in sizes.items()}


def fastest_mix(costs: LayerCosts, layers: Collection[str], forced: Collection[str] = ()) -> Mix:
    """The layers that stay float for speed, with `forced`; islands are joined where conversions cost more.

    Starts from each layer's own choice; then whole islands of one precision, and single layers that are clearly
    slower in int8, change sides as long as that saves time.

    Args:
        costs: Of both choices.
        layers: That can be int8.
        forced: Those that stay float in any case.
    """
    slower = [{layer} for layer in layers if costs.slower(layer)]
    mix = frozenset(forced).union(*slower)
    now = costs.ms(mix)
    while True:
        moves = [*_islands(mix, layers, costs), *slower]
        tried = {mix ^ frozenset(move) for move in moves if not (frozenset(move) & frozenset(forced))}
        best = min(tried, key=lambda other: (costs.ms(other), sorted(other)), default=mix)
        if costs.ms(best) >= now - _SMALLEST:
            return mix
        mix, now = best, costs.ms(best)


def _islands(mix: Mix, layers: Collection[str], costs: LayerCosts) -> list[set[str]]:
    """Layers that are connected and of one precision."""
    left, found = set(layers), list[set[str]]()
    beside: dict[str, set[str]] = {layer: set() for layer in layers}
    for first, second in costs.borders:
        if first in beside and second in beside and (first in mix) == (second in mix):
            beside[first].add(second)
            beside[second].add(first)
    while left:
        island, edge = set[str](), {min(left)}
        while edge:
            island |= edge
            edge = {near for layer in edge for near in beside[layer]} - island
        left -= island
        found.append(island)
    return found


def without_losing_islands(
    mix: Mix, costs: LayerCosts, measured: Mapping[str, float], *, forced: Collection[str] = ()
) -> Mix:
    """The mix without those float islands that do not pay, conversions on their borders included.

    Args:
        mix: As it was measured.
        costs: Of all-float and all-int8.
        measured: Layer -> milliseconds in the file of the mix: a conversion counts to the layer before it.
        forced: Layers that stay float in any case.
    """
    kept = set(mix)
    for island in _islands(mix, costs.as_int8.keys(), costs):
        if not island <= mix or island & set(forced):
            continue
        around = island | {a for a, b in costs.borders if b in island} | {b for a, b in costs.borders if a in island}
        known = [layer for layer in around if layer in measured]
        if sum(costs.as_int8.get(layer, 0.0) for layer in known) <= sum(measured[layer] for layer in known):
            kept -= island
    return frozenset(kept)


def by_worth(layers: Sequence[str], errors: Mapping[str, float], costs: LayerCosts | None) -> list[str]:
    """Layers in the order in which they had better be float: the most error for the least time first.

    Args:
        layers: That can be int8.
        errors: Layer -> error at the outputs when it alone is int8.
        costs: Of both choices; None where nothing is known of time.
    """

    def worth(layer: str) -> float:
        return errors[layer] / (1.0 if costs is None else max(costs.gain(layer), _COUNTED_MS))

    return sorted(layers, key=lambda layer: (-worth(layer), -errors[layer], layers.index(layer)))


def fewest(count: int, keeps: Callable[[int], bool]) -> int | None:
    """The least number of layers to leave float, counted in one order, in a few trials.

    1, 2, 4, ... layers are tried until one keeps the accuracy, then halves of the last step; more float layers are
    taken to keep more.

    Args:
        count: Of all layers; with all float there is nothing to try, it is the float model.
        keeps: Does it keep the accuracy with this many float layers?

    Returns:
        None where only all-float would do.
    """
    low, high = 0, 1
    while high < count and not keeps(high):
        low, high = high, 2 * high
    if high >= count:
        high = count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return None if high >= count else high
