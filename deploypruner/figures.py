"""Numbers as a person reads them: three significant digits, SI prefixes, "-" for what is not known."""

from __future__ import annotations

import math

UNKNOWN = "-"
_PREFIXES = ("", "k", "M", "G", "T", "P")


def significant(value: float | None) -> str:
    """Three significant digits without an exponent: 0.412, 1.33, 12.3, 1230."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    rounded = float(f"{value:.2e}")
    if rounded == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:.{decimals}f}"


def scaled(value: float | None, unit: str = "") -> str:
    """SI prefix with decimal steps: 12_300_000 -> "12.3 M", with unit "B" -> "12.3 MB"; counts below 1000 whole."""
    if isinstance(value, int) and abs(value) < 1000:
        return f"{value} {unit}".rstrip()
    if value is None or not math.isfinite(value):
        return UNKNOWN
    rounded, step = float(f"{value:.2e}"), 0
    while abs(rounded) >= 1000 and step < len(_PREFIXES) - 1:
        rounded, step = rounded / 1000, step + 1
    return f"{significant(rounded)} {_PREFIXES[step]}{unit}".rstrip()
