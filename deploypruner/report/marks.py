"""Markers of the scatter: shape = precision, colour = dense or pruned, fill = runtime."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deploypruner.records import Row

RADIUS = 5.5
_FILLS = ("filled", "hollow", "dotted")


@dataclass(frozen=True)
class Legend:
    """One entry: a marker and what it stands for."""

    marker: Markup
    text: str


def runtime_fills(rows: Sequence[Row]) -> dict[str, str]:
    """Runtime name -> how its markers are filled, in order of first appearance."""
    names = list(dict.fromkeys(row.runtime for row in rows))
    return {name: _FILLS[i % len(_FILLS)] for i, name in enumerate(names)}


def legend(rows: Sequence[Row]) -> list[Legend]:
    """What each combination of shape, colour and fill stands for, one entry per property."""
    fills = runtime_fills(rows)
    entries = []
    for precision, shape in (("fp32", "circle"), ("int8", "square")):
        if any(row.precision == precision for row in rows):
            entries.append(Legend(_key(shape, "neutral filled"), f"{precision} ({shape})"))
    kinds = [word for word in ("dense", "pruned") if any(kind(row) == word for row in rows)]
    entries += [Legend(_key("stripe", f"{word} filled"), word) for word in kinds]
    return entries + [Legend(_key("circle", f"neutral {fill}"), f"{name} ({fill})") for name, fill in fills.items()]


def marker(row: Row, fill: str, x: float, y: float) -> Markup:
    """The marker of a row, centred on (x, y) pixels."""
    shape = "circle" if row.precision == "fp32" else "square"
    return _shape(shape, f"{kind(row)} {fill}", x, y)


def way_marker(x: float, y: float, *, measured: bool) -> Markup:
    """The mark of a candidate on the way, centred on (x, y) pixels: filled where it was timed."""
    css = "way timed" if measured else "way"
    return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(css, x, y)


def way_legend(measured: Collection[bool]) -> list[Legend]:
    """What the small marks stand for, of those kinds that there are."""
    texts = {True: "candidate on the way, timed", False: "candidate, time predicted"}
    key = Markup('<svg class="key" width="20" height="14" aria-hidden="true">{}</svg>')
    return [Legend(key.format(way_marker(10, 7, measured=k)), text) for k, text in texts.items() if k in measured]


def _shape(shape: str, classes: str, x: float, y: float) -> Markup:
    if shape == "circle":
        drawn = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="{:g}"/>').format(classes, x, y, RADIUS)
    else:
        wide, high = (2 * RADIUS, 2 * RADIUS) if shape == "square" else (18.0, 6.0)
        drawn = Markup('<rect class="mark {}" x="{:.1f}" y="{:.1f}" width="{:g}" height="{:g}"/>').format(
            classes, x - wide / 2, y - high / 2, wide, high
        )
    if classes.endswith("dotted"):
        drawn += Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="2"/>').format(classes, x, y)
    return drawn


def _key(shape: str, classes: str) -> Markup:
    return Markup('<svg class="key" width="20" height="14" aria-hidden="true">{}</svg>').format(
        _shape(shape, classes, 10, 7)
    )


def kind(row: Row) -> str:
    """CSS class and legend word of a row: "dense" or "pruned"."""
    return "dense" if row.pattern == "dense" else "pruned"
