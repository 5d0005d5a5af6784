"""Quality against measured latency, drawn as SVG by hand: text stays text, colours follow the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from deploypruner.records import Row
from deploypruner.report import svg, units
from deploypruner.report.axis import Axis, tick_labels
from deploypruner.report.headline import group_rows
from deploypruner.report.labels import Box, needs_leader, place_labels
from deploypruner.report.marks import kind, marker, runtime_fills, way_marker
from deploypruner.report.points import WayMark

_FONT = 12.0
_LETTER = 6.4  # mean advance of a 12 px sans-serif letter, on the wide side
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 14.0, 34.0, 44.0
# Spans of the rows, and times the slack of the axis, that a mark on the way may be below all rows.
_DEEPER, _AT_LEAST = 2.0, 10.0
_LOG_FROM = 12.0  # slowest / fastest beyond which a linear axis crowds the fast rows


@dataclass(frozen=True)
class QualityAxis:
    """The vertical axis: what it says, the number of a row, the number as text, and whether better is up."""

    title: str
    value: Callable[[Row], float | None]
    text: Callable[[float], str]
    best: float
    slack: float
    upward: bool = True
    least: float = -math.inf


def quality_axis(rows: Sequence[Row]) -> QualityAxis | None:
    """Accuracy where every row has it, else agreement, else None."""
    if all(row.accuracy is not None for row in rows):
        metric, unit = rows[0].metric, units.metric_unit(rows)
        name = f"{metric.name}, {unit}" if unit else metric.name
        if metric.unit == "%":
            return QualityAxis(name, lambda row: row.accuracy, lambda value: f"{value:.1f} %", 100.0, 0.5)
        worst = max(abs(row.accuracy or 0.0) for row in rows)
        slack, upward = 0.01 * worst or 0.01, metric.higher_is_better
        return QualityAxis(
            *(name, lambda row: row.accuracy, lambda value: units.accuracy(value, ""), math.inf, slack, upward)
        )
    kinds = list(dict.fromkeys(row.agreement_kind for row in rows if row.agreement is not None))
    if kinds == ["cosine"]:
        return QualityAxis(
            "cosine agreement with dense", lambda row: row.agreement, lambda v: f"{v:.4f}", 1.0, 0.0002
        )
    if kinds == [units.RELATIVE_ERROR]:
        # Of the dense model itself it is 0, and nothing is below that.
        name = "relative error, % (against dense)"
        return QualityAxis(
            name, _error_percent, lambda value: f"{value:.1f} %", math.inf, 0.5, upward=False, least=0.0
        )
    if kinds:
        name = f"{' or '.join(kinds)} agreement with dense, %".replace(units.RELATIVE_ERROR, "100 - relative error")
        return QualityAxis(name, _agreement_percent, lambda value: f"{value:.1f} %", 100.0, 0.5)
    return None


def scatter(
    rows: Sequence[Row],
    *,
    width: float,
    height: float,
    emphasis: Row | None = None,
    way: Sequence[WayMark] = (),
    dominated: Sequence[Row] = (),
    front: bool = False,
) -> Markup:
    """Draw one marker per row: shape = precision, colour = dense or pruned, fill = runtime.

    Args:
        rows: Rows with a quality; `quality_axis(rows)` must not be None.
        width: Pixels.
        height: Pixels.
        emphasis: The recommended row; its label is bold.
        way: Smaller marks without a label; those that `in_picture` leaves out are not drawn.
        dominated: Those of the rows that are drawn pale and without a label.
        front: Is a line drawn through the others, from the fastest on?

    Returns:
        An svg element. The line beside a marker is `spread`; one without an end mark leaves the picture.
    """
    quality = quality_axis(rows)
    assert quality is not None, "scatter needs rows with an accuracy or one kind of agreement"
    rows = [row for row in rows if quality.value(row) is not None]
    way = in_picture(rows, way)
    x, y = _x_axis(rows, width, way), _y_axis(rows, quality, height, way)
    fills = runtime_fills(rows)
    parts = [_grid(x, y, quality, (width, height))]
    parts += [_spread_line(row, rows, x=x, y=y, quality=quality) for row in rows if row not in dominated]
    for mark in way:
        drawn = way_marker(x.pixel(mark.ms), y.pixel(mark.value), measured=mark.measured)
        parts.append(Markup("<g>{}<title>{}</title></g>").format(drawn, mark.text))
    named = [row for row in rows if row not in dominated]
    if front:
        parts.append(_front_line([(x.pixel(row.median_ms), y.pixel(_value(quality, row))) for row in named]))
    taken = [(x.pixel(mark.ms), y.pixel(mark.value)) for mark in way]
    taken += [(x.pixel(row.median_ms), y.pixel(_value(quality, row))) for row in dominated if row in rows]
    parts += [_labels(named, x, y, quality=quality, size=(width, height), emphasis=emphasis, taken=taken)]
    for row in rows:
        shape = marker(row, fills[row.runtime], x.pixel(row.median_ms), y.pixel(_value(quality, row)))
        pale = Markup(' class="pale"') if row in dominated else Markup("")
        parts.append(Markup("<g{}>{}<title>{}</title></g>").format(pale, shape, _tooltip(row, quality)))
    frame = Markup(
        '<svg class="scatter" viewBox="0 0 {w:g} {h:g}" width="{w:g}" height="{h:g}" role="img">{inside}</svg>'
    )
    title = Markup("<title>Quality against measured latency</title>")
    return frame.format(w=width, h=height, inside=title + Markup("").join(parts))


def in_picture(rows: Sequence[Row], way: Sequence[WayMark]) -> list[WayMark]:
    """The marks near enough to the rows that both can be read: no slower than the slowest, and not far below them."""
    quality = quality_axis(rows)
    assert quality is not None, "there is a picture"
    rows = [row for row in rows if quality.value(row) is not None]
    values, slowest = [_value(quality, row) for row in rows], max(row.median_ms for row in rows)
    deep = min(values) - max(_DEEPER * (max(values) - min(values)), _AT_LEAST * quality.slack)
    return [mark for mark in way if mark.ms <= 1.1 * slowest and mark.value >= deep]


def cuts_zero_off(rows: Sequence[Row], way: Sequence[WayMark] = ()) -> bool:
    """Does the vertical axis begin above zero, so that heights are no proportions?"""
    quality = quality_axis(rows)
    assert quality is not None, "there is a picture"
    drawn = [row for row in rows if quality.value(row) is not None]
    return _y_axis(drawn, quality, _BOTTOM + _TOP, in_picture(rows, way)).low > 0


def spread(row: Row, rows: Sequence[Row]) -> tuple[float, float] | None:
    """Milliseconds the line beside a marker covers: median to p95, or the baseline's median over `ratio_ci`.

    The interval stands in only where no row has a p95, so that one picture never mixes the two.
    """
    if any(other.p95_ms is not None for other in rows):
        return None if row.p95_ms is None else (row.median_ms, row.p95_ms)
    group = next(group for group in group_rows(rows) if row in group.rows)
    if group.baseline is None or row == group.baseline or min(row.ratio_ci) <= 0:
        return None
    return group.baseline.median_ms / row.ratio_ci[1], group.baseline.median_ms / row.ratio_ci[0]


def _agreement_percent(row: Row) -> float | None:
    return None if row.agreement is None else 100 * row.agreement


def _error_percent(row: Row) -> float | None:
    return None if row.agreement is None else 100 * (1 - row.agreement)


def _value(quality: QualityAxis, row: Row) -> float:
    value = quality.value(row)
    assert value is not None, f"row '{row.name}' has no {quality.title}"
    return value


def _x_axis(rows: Sequence[Row], width: float, way: Sequence[WayMark] = ()) -> Axis:
    medians = [*(row.median_ms for row in rows), *(mark.ms for mark in way)]
    ends = [reach[1] for reach in (spread(row, rows) for row in rows) if reach is not None]
    # A far tail must not squeeze the medians: its line runs off the picture instead.
    high = 1.08 * min(max(medians + ends), 1.6 * max(medians))
    if max(medians) / min(medians) > _LOG_FROM:
        return Axis(min(medians) / 1.5, 1.2 * high, _LEFT, width - _RIGHT, logarithmic=True)
    return Axis(0.0, high, _LEFT, width - _RIGHT)


def _y_axis(rows: Sequence[Row], quality: QualityAxis, height: float, way: Sequence[WayMark] = ()) -> Axis:
    values = [*(_value(quality, row) for row in rows), *(mark.value for mark in way)]
    pad = max(0.2 * (max(values) - min(values)), quality.slack)
    return Axis(min(values) - pad, max(values) + pad, height - _BOTTOM, _TOP)


def _grid(x: Axis, y: Axis, quality: QualityAxis, size: tuple[float, float]) -> Markup:
    width, height = size
    parts = []
    ticks = [tick for tick in y.ticks(5) if quality.least <= tick <= quality.best]
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        at = y.pixel(tick)
        parts.append(svg.line("grid", (x.start, at), (x.end, at)))
        parts.append(svg.text("tick", (x.start - 7, at + 4), label, anchor="end"))
    ticks = x.ticks(max(3, int(width // 100)))
    labels = [f"{tick:g}" for tick in ticks] if x.logarithmic else tick_labels(ticks)
    for tick, label in zip(ticks, labels, strict=True):
        at = x.pixel(tick)
        parts.append(svg.line("axis", (at, y.start), (at, y.start + 5)))
        parts.append(svg.text("tick", (at, y.start + 18), label, anchor="middle"))
    parts.append(svg.line("axis", (x.start, y.start), (x.end, y.start)))
    scale = "median latency, ms (logarithmic)" if x.logarithmic else "median latency, ms"
    parts.append(svg.text("name", (x.end, height - 6), scale, anchor="end"))
    parts.append(svg.text("name", (4, 14), quality.title))
    return Markup("").join(parts)


def _spread_line(row: Row, rows: Sequence[Row], *, x: Axis, y: Axis, quality: QualityAxis) -> Markup:
    reach = spread(row, rows)
    if reach is None:
        return Markup("")
    at, css = y.pixel(_value(quality, row)), f"spread {kind(row)}"
    left, right = max(x.pixel(reach[0]), x.start), min(x.pixel(reach[1]), x.end)
    drawn = svg.line(css, (left, at), (right, at))
    return drawn + svg.line(css, (right, at - 4), (right, at + 4)) if x.pixel(reach[1]) <= x.end else drawn


def _front_line(points: Sequence[tuple[float, float]]) -> Markup:
    """Through what nothing dominates, in the order of time."""
    ends = sorted(points)
    return Markup("").join(svg.line("front", start, end) for start, end in pairwise(ends))


def _labels(
    rows: Sequence[Row],
    x: Axis,
    y: Axis,
    *,
    quality: QualityAxis,
    size: tuple[float, float],
    emphasis: Row | None,
    taken: Sequence[tuple[float, float]],
) -> Markup:
    several = len({row.runtime for row in rows}) > 1
    longest = int((x.end - x.start) / _LETTER) - 2
    texts = [_shorten(f"{row.name}, {row.runtime}" if several else row.name, longest) for row in rows]
    anchors = [(x.pixel(row.median_ms), y.pixel(_value(quality, row))) for row in rows]
    boxes = place_labels(
        anchors,
        [(_LETTER * len(text) + 4, _FONT + 3) for text in texts],
        obstacles=[*_obstacles(rows, anchors, x), *(Box(a - 4, b - 4, a + 4, b + 4) for a, b in taken)],
        bounds=Box(x.start + 2, 18.0, size[0] - 2, y.start - 3),
    )
    parts = []
    for row, text, anchor, box in zip(rows, texts, anchors, boxes, strict=True):
        if needs_leader(anchor, box):
            parts.append(svg.line("leader", anchor, box.nearest(*anchor)))
        side = "start" if box.left >= anchor[0] else "end" if box.right <= anchor[0] else "middle"
        at = {"start": box.left, "end": box.right, "middle": (box.left + box.right) / 2}[side]
        css = "label strong" if row == emphasis else "label"
        parts.append(svg.text(css, (at, box.bottom - 4), text, anchor=side))
    return Markup("").join(parts)


def _obstacles(rows: Sequence[Row], anchors: Sequence[tuple[float, float]], x: Axis) -> list[Box]:
    """The markers and the lines beside them."""
    boxes = [Box(ax - 7, ay - 7, ax + 7, ay + 7) for ax, ay in anchors]
    for row, (_, ay) in zip(rows, anchors, strict=True):
        reach = spread(row, rows)
        if reach is not None:
            boxes.append(Box(x.pixel(reach[0]), ay - 3, min(x.pixel(reach[1]), x.end) + 8, ay + 3))
    return boxes


def _shorten(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 2] + ".."


def _tooltip(row: Row, quality: QualityAxis) -> str:
    p95 = f", p95 {units.significant(row.p95_ms)} ms" if row.p95_ms is not None else ""
    latency = f"median {units.significant(row.median_ms)} ms{p95}"
    value = quality.text(_value(quality, row))
    return f"{row.name} on {row.runtime}: {latency}; {quality.title.partition(',')[0]} {value}"
