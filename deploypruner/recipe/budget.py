"""What a compiled model may cost: milliseconds, a speed-up, or multiply-adds."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from deploypruner.errors import RecipeError
from deploypruner.recipe.option import BUDGET, documented, option

Kind = Literal["macs", "latency", "speedup"]

_TIME = re.compile(
    r"\s*(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*(?P<unit>[^@\s]*)\s*(?:@\s*(?P<at>\S*)\s*)?", re.I
)
_MS = {"us": 1e-3, "\N{MICRO SIGN}s": 1e-3, "\N{GREEK SMALL LETTER MU}s": 1e-3, "ms": 1.0, "s": 1e3}
_QUANTILES = {"median": 0.5, "p50": 0.5, "p95": 0.95, "p99": 0.99}
_HINT = "write it as 5ms, 800us or 5ms@p95"
FASTEST = "fastest"


@documented
@dataclass(frozen=True)
class Budget:
    """What the compiled model may cost: exactly one of the first three.

    Raises:
        RecipeError: None or several of them, or a value out of range.
    """

    macs: float | None = option(
        None,
        "Fraction of the dense model's multiply-adds that may remain, 0 < macs <= 1; predicted.",
        flag="--macs",
        basic=True,
        metavar="FRACTION",
        shown="0.5",
        group=BUDGET,
    )
    latency: float | str | None = option(
        None,
        "Time of one inference at batch 1 on the target, measured: 5ms, 800us, or 5ms@p95 for a quantile; a "
        "number is milliseconds; fastest is the least that --accuracy-drop allows.",
        flag="--latency",
        basic=True,
        metavar="5ms",
        group=BUDGET,
    )
    speedup: float | None = option(
        None,
        "Factor over the dense model's speed, at least, in the same runtime, precision and threads; measured.",
        flag="--speedup",
        basic=True,
        metavar="TIMES",
        group=BUDGET,
    )

    def __post_init__(self) -> None:
        given = [name for name in ("macs", "latency", "speedup") if getattr(self, name) is not None]
        if len(given) != 1:
            named = " and ".join(f"--{name}" for name in given) or "nothing"
            raise RecipeError(
                f"a budget is one number, got {named}", hint="give one of --latency, --speedup and --macs"
            )
        if self.macs is not None and not 0 < self.macs <= 1:
            raise RecipeError(
                f"--macs is the fraction of multiply-adds that remain, 0 < macs <= 1, got {self.macs:g}",
                hint="0.5 keeps half of them",
            )
        if self.speedup is not None and not (self.speedup >= 1 and math.isfinite(self.speedup)):
            raise RecipeError(
                f"--speedup is dense time / compiled time, at least 1, got {self.speedup:g}",
                hint="2 means half the latency of the dense model",
            )
        if self.latency is not None:
            parse_latency(self.latency)

    @property
    def kind(self) -> Kind:
        """Which of the three was asked for."""
        return "macs" if self.macs is not None else "latency" if self.latency is not None else "speedup"

    @property
    def latency_ms(self) -> float | None:
        """Milliseconds, endless where they are to be found, None where another kind was asked for."""
        return None if self.latency is None else parse_latency(self.latency)[0]

    @property
    def fastest(self) -> bool:
        """Is the time to be found, the least within the budget of accuracy?"""
        return self.latency == FASTEST

    @property
    def quantile(self) -> float:
        """Of single inferences: 0.5 unless the latency says another."""
        return 0.5 if self.latency is None else parse_latency(self.latency)[1]

    def __str__(self) -> str:
        if self.macs is not None:
            return f"--macs {self.macs:g}"
        if self.speedup is not None:
            return f"--speedup {self.speedup:g}"
        return f"--latency {self.latency if isinstance(self.latency, str) else f'{self.latency:g}ms'}"


def parse_latency(value: float | str) -> tuple[float, float]:
    """ "5ms@p95" -> (5.0, 0.95): milliseconds and quantile; a number is milliseconds, "fastest" allows any.

    Raises:
        RecipeError: Not a positive time in us, ms or s, or a quantile other than p50, p95 and p99.
    """
    if value == FASTEST:
        return math.inf, 0.5
    if isinstance(value, str):
        found = _TIME.fullmatch(value)
        unit = (found["unit"] or "ms").lower() if found is not None else ""
        if found is None or unit not in _MS:
            raise RecipeError(f"--latency '{value}' is not a time", hint=_HINT)
        at = found["at"]
        if at is not None and at.lower() not in _QUANTILES:
            raise RecipeError(f"--latency '{value}': no quantile called '{at}'", hint="p50, p95 or p99")
        number, quantile = float(found["number"]) * _MS[unit], _QUANTILES[(at or "median").lower()]
    else:
        number, quantile = float(value), 0.5
    if not (number > 0 and math.isfinite(number)):
        raise RecipeError(f"--latency must be more than 0 ms, got '{value}'", hint=_HINT)
    return number, quantile
