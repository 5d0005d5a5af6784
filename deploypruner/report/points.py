"""Points on the way to the result: small marks in the picture, and a table of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploypruner.records import Row
from deploypruner.report import units


@dataclass(frozen=True)
class WayMark:
    """A point in the picture that is no finished artifact.

    Args:
        ms: Latency.
        value: On the vertical axis.
        text: What it is, on which ground.
        measured: Was it timed?
    """

    ms: float
    value: float
    text: str
    measured: bool


@dataclass(frozen=True)
class PointLine:
    """One point as text."""

    id: str
    what: str
    latency: str
    latency_basis: str
    quality: str
    quality_basis: str
    size: str
    macs: str
    files: str


def points_sentence(points: Sequence[Mapping[str, Any]]) -> str:
    """How many there are and how to have one; "" without any on the way."""
    way = [point for point in points if point["kind"] != "finished"]
    if not way:
        return ""
    timed = sum(point["measured"] for point in way)
    return (
        f"{len(way)} candidates from the way here are kept beside these artifacts, {timed} of them timed; "
        f"`deploypruner export BUILD --point {way[0]['id']} --out DIR` makes one, report.json has all"
    )


def way_marks(points: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> list[WayMark]:
    """Those that the picture can hold beside the rows.

    A candidate was judged on other samples than a row, so that what it lost there against the dense model is taken
    off the dense row: the picture compares losses.
    """
    labelled = all(row.accuracy is not None for row in rows)
    dense = next((row for row in rows if (row.pattern, row.precision) == ("dense", "fp32")), None)
    if dense is None or (labelled and dense.metric.unit != "%"):
        return []
    kinds = {row.agreement_kind for row in rows}
    start = dense.accuracy if labelled and dense.accuracy is not None else 100.0
    if not labelled and kinds != {"top-1"}:
        return []
    marks = []
    for point in points:
        known = point["lost"] is not None and point["latency_ms"] is not None and point["kind"] != "finished"
        fits = point["labelled"] or point["metric"] == "top-1" if labelled else point["metric"] == "top-1"
        if known and fits:
            marks.append(WayMark(point["latency_ms"], start - point["lost"], _text(point), bool(point["measured"])))
    return marks


def _text(point: Mapping[str, Any]) -> str:
    return (
        f"{point['id']}, {point['what']}: {units.significant(point['latency_ms'])} ms {point['latency_basis']}; "
        f"{_lost(point)} {point['quality_basis']}"
    )


def point_lines(points: Sequence[Mapping[str, Any]]) -> list[PointLine]:
    """All of them, in the order of the report."""
    return [
        PointLine(
            id=str(point["id"]),
            what=f"{point['what']}, {point['precision']} on {point['runtime']}",
            latency=units.significant(point["latency_ms"]),
            latency_basis=str(point["latency_basis"]),
            quality=_quality(point),
            quality_basis=str(point["quality_basis"]) + (f" ({point['samples']})" if point["samples"] else ""),
            size=units.scaled(point["bytes"], "B") + (f" ({point['bytes_of']})" if point["bytes_of"] else ""),
            macs=units.scaled(point["macs"]),
            files=str(point["artifact"]) or "made when exported",
        )
        for point in points
    ]


def points_text(points: Sequence[Mapping[str, Any]]) -> str:
    """A line for each, for a terminal."""
    lines = point_lines(points)
    width = max((len(line.id) for line in lines), default=0)
    return "".join(
        f"{line.id:{width}}  {line.latency:>6} ms {line.latency_basis}; {line.quality} {line.quality_basis}; "
        f"{line.what}\n"
        for line in lines
    )


def _quality(point: Mapping[str, Any]) -> str:
    value, metric = point["value"], str(point["metric"])
    number = units.accuracy(value, "%" if value is not None and abs(value) >= 10 else "")
    shown = "" if value is None else f"{metric} {number}"
    return ", ".join(part for part in (shown, _lost(point)) if part) or units.UNKNOWN


def _lost(point: Mapping[str, Any]) -> str:
    lost = point["lost"]
    if lost is None:
        return ""
    return f"{lost:.1f} points lost" if lost > 0 else "nothing lost"
