"""Two pictures of a population, drawn as SVG by hand: the drop as a distribution, and along MACs per parameter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from deploypruner.report import svg
from deploypruner.report.axis import Axis, tick_labels
from deploypruner.sweep.records import Bucket, SweepFound

_WIDE, _HIGH = 560.0, 340.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 30.0, 44.0
# Of lines, one for each sub-space: the darker, the larger the standard deviation.
_SHADES = ("#7fc8bf", "#4aa99e", "#0b7a6f", "#075b53", "#033a35")


def edf_picture(found: SweepFound) -> Markup:
    """Share of the recipes of each sub-space that lose less than so many points."""
    drops = [drop for bucket in found.buckets for drop in bucket.drops]
    x, y = _axis(drops, _LEFT, _WIDE - _RIGHT), Axis(0.0, 1.0, _HIGH - _BOTTOM, _TOP)
    parts = [_frame(x, y, f"points of {found.quality} lost", "share of the recipes that lose less")]
    parts += [_steps(bucket, x, y) for bucket in found.buckets]
    return _svg("Distribution of the drop by the standard deviation of the ratios", parts)


def budget_picture(found: SweepFound) -> Markup:
    """One mark for each recipe: points lost against MACs per parameter; the band is the interval of the optimum."""
    budgets = [sample.budget(found.dense) for sample in found.samples]
    drops = [sample.drop for sample in found.samples]
    x, y = _axis([*budgets, 1.0], _LEFT, _WIDE - _RIGHT), _axis(drops, _HIGH - _BOTTOM, _TOP)
    parts = []
    if found.optimum is not None:
        low, high = (x.pixel(edge) for edge in found.optimum.interval)
        band = Markup('<rect class="band" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
        parts.append(band.format(low, _TOP, max(1.0, high - low), _HIGH - _BOTTOM - _TOP))
    name = "MACs per parameter, the dense model's = 1"
    parts.append(_frame(x, y, name, f"points of {found.quality} lost"))
    parts.append(svg.line("front", (x.pixel(1.0), y.start), (x.pixel(1.0), y.end)))
    won = {winner.name for winner in found.winners}
    for sample, budget in zip(found.samples, budgets, strict=True):
        text = f"{sample.drop:.2f} points, {budget:.3f}, std {sample.std:.2f}"
        radius = 6.0 if sample.name in won else 3.5
        mark = Markup('<g><circle class="pruned" cx="{:.1f}" cy="{:.1f}" r="{:g}"/><title>{}</title></g>')
        parts.append(mark.format(x.pixel(budget), y.pixel(sample.drop), radius, text))
    return _svg("Drop against the MACs per parameter", parts)


def _steps(bucket: Bucket, x: Axis, y: Axis) -> Markup:
    count = len(bucket.drops)
    points = [(x.start, y.pixel(0.0))]
    for place, drop in enumerate(bucket.drops):
        points += [(x.pixel(drop), y.pixel(place / count)), (x.pixel(drop), y.pixel((place + 1) / count))]
    points.append((x.end, y.pixel(1.0)))
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
    line = Markup('<g><polyline class="edf" style="stroke: {}" points="{}"/><title>{}</title></g>')
    return line.format(_colour(bucket), path, f"std {bucket.low:g} to {bucket.high:g}: {count} recipes")


def _colour(bucket: Bucket) -> str:
    """By its place among all sub-spaces, so that one has the same colour in every sweep."""
    return _SHADES[min(len(_SHADES) - 1, int(np.searchsorted((0.05, 0.1, 0.15, 0.2), bucket.low, side="right")))]


def legend(found: SweepFound) -> list[tuple[str, str]]:
    """Colour and text of every line of the first picture."""
    return [
        (_colour(bucket), f"std {bucket.low:g} to {bucket.high:g} ({len(bucket.drops)})") for bucket in found.buckets
    ]


def _axis(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.5
    return Axis(low - pad, high + pad, start, end)


def _frame(x: Axis, y: Axis, x_name: str, y_name: str) -> Markup:
    parts = []
    for tick, label in _ticks(y, 5):
        at = y.pixel(tick)
        parts += [
            svg.line("grid", (x.start, at), (x.end, at)),
            svg.text("tick", (x.start - 7, at + 4), label, anchor="end"),
        ]
    for tick, label in _ticks(x, 6):
        at = x.pixel(tick)
        parts += [
            svg.line("axis", (at, y.start), (at, y.start + 5)),
            svg.text("tick", (at, y.start + 18), label, anchor="middle"),
        ]
    parts.append(svg.line("axis", (x.start, y.start), (x.end, y.start)))
    parts += [svg.text("name", (x.end, _HIGH - 6), x_name, anchor="end"), svg.text("name", (4, 14), y_name)]
    return Markup("").join(parts)


def _ticks(axis: Axis, wanted: int) -> list[tuple[float, str]]:
    ticks = axis.ticks(wanted)
    return list(zip(ticks, tick_labels(ticks), strict=True))


def _svg(title: str, parts: Sequence[Markup]) -> Markup:
    frame = Markup(
        '<svg class="scatter" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" role="img">'
        "<title>{title}</title>{inside}</svg>"
    )
    return frame.format(w=_WIDE, h=_HIGH, title=title, inside=Markup("").join(parts))
