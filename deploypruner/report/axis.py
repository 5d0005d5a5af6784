"""A linear or logarithmic axis: domain, pixel positions and round ticks."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Maps [low, high] in data units to [start, end] in pixels; start may exceed end (y grows downwards)."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def pixel(self, value: float) -> float:
        """Position of `value`; outside the domain it lies outside the pixels too."""
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, wanted: int) -> list[float]:
        """About `wanted` round numbers inside the domain, ascending; multiples of 1, 2 or 5 times 10^k."""
        if self.logarithmic:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            digits = (1, 2, 5) if len(decades) <= wanted else (1,)
            values = [digit * 10.0**decade for decade in decades for digit in digits]
        else:
            step = _round_step((self.high - self.low) / wanted)
            values = [
                round(i * step, 12) for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)
            ]
        slack = 1e-9 * (abs(self.high) + abs(self.low))
        return [value for value in values if self.low - slack <= value <= self.high + slack]


def tick_labels(ticks: list[float]) -> list[str]:
    """Ticks with as many decimals as the finest of them needs, so that they line up."""
    for decimals in range(7):
        if all(math.isclose(round(tick, decimals), tick, abs_tol=1e-12) for tick in ticks):
            return [f"{tick:.{decimals}f}" for tick in ticks]
    return [f"{tick:g}" for tick in ticks]


def _round_step(rough: float) -> float:
    power = 10.0 ** math.floor(math.log10(rough))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= rough * (1 - 1e-9))
