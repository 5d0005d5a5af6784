"""Accuracy against latency of several builds of one model: what is dominated, as a table and as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from markupsafe import Markup

from deploypruner.records import Row
from deploypruner.report import units
from deploypruner.report.document import Report, json_value
from deploypruner.report.gains import eager
from deploypruner.report.marks import legend
from deploypruner.report.page import style, template
from deploypruner.report.scatter import QualityAxis, quality_axis, scatter
from deploypruner.report.terminal import Paint, aligned, ascii_only, painter, wrap
from deploypruner.terminal import escaped

Status = Literal["kept", "not kept", "refused", "failed"]
_HEADS = ("artifact", "runtime", "accuracy", "median, ms", "speed-up", "MACs", "size", "")
_LEFT = (0, 1, len(_HEADS) - 1)
_WIDE, _HIGH = 900.0, 480.0


@dataclass(frozen=True)
class FrontierPoint:
    """One budget of a frontier and what became of it.

    Args:
        name: As it is called in the table, and its folder: "2x".
        asked: As on the command line: "--speedup 2".
        status: kept; not kept: built, and over its budget or below its accuracy; refused: out of reach; failed:
            for another reason.
        why: Of what was not kept; "" for what was.
        folder: Of its build, within that of the frontier; "" without one.
        seconds: That it took, of all its runs that finished a stage.
    """

    name: str
    asked: str
    status: Status
    why: str
    folder: str
    seconds: float


@dataclass(frozen=True)
class FrontierRow:
    """One artifact on a runtime.

    Args:
        point: Name of the point it belongs to, "" for the dense model.
        row: As measured.
        dominated_by: Name and runtime of a row that is at least as fast and as good, and better in one; "" for none.
    """

    point: str
    row: Row
    dominated_by: str


@dataclass(frozen=True)
class Frontier:
    """All points of one model.

    Args:
        model: Its name.
        command: That made them.
        machine: Processor that measured them, and the threads.
        points: In the order asked.
        rows: Of one interleaved run, or of several builds.
        floor: Noise floor of that run, relative.
        notes: What else there is to know, full sentences without their stop.
        seconds: Name of what the points share -> seconds, and "measure".
    """

    model: str
    command: str
    machine: str
    points: tuple[FrontierPoint, ...]
    rows: tuple[FrontierRow, ...]
    floor: float
    notes: tuple[str, ...]
    seconds: dict[str, float]


def rows_of(builds: Sequence[tuple[str, Report]]) -> list[tuple[str, Row]]:
    """Every artifact of several builds of one model once: the dense ones of the first build, the pruned ones of all.

    Torch eager, which was measured for comparison alone, is left out.

    Args:
        builds: Name of the point and its report.
    """
    return [
        (point, row)
        for number, (point, report) in enumerate(builds)
        for row in report.rows
        if row is not eager(report.rows) and (number == 0 or row.pattern != "dense")
    ]


def marked(rows: Sequence[tuple[str, Row]], *, floor: float) -> tuple[FrontierRow, ...]:
    """Say of every row whether another one dominates it: at least as fast and as good, and better in one of the two.

    Faster counts as better only beyond the noise floor; quality is compared as measured, so a row that is dominated
    by less than its interval may be as good. Rows without a quality are neither.

    Args:
        rows: Name of the point and row.
        floor: Relative.
    """
    quality = quality_axis([row for _, row in rows]) if rows else None
    return tuple(FrontierRow(point, row, _dominator(row, rows, quality, floor)) for point, row in rows)


def _dominator(row: Row, rows: Sequence[tuple[str, Row]], quality: QualityAxis | None, floor: float) -> str:
    if quality is None or (own := _good(row, quality)) is None:
        return ""
    better = []
    for _, other in rows:
        good = _good(other, quality)
        if good is None or other.median_ms > row.median_ms or good < own:
            continue
        if good > own or other.median_ms * (1 + floor) < row.median_ms:
            better.append((good, -other.median_ms, f"{other.name} on {other.runtime}"))
    return max(better)[2] if better else ""


def _good(row: Row, quality: QualityAxis) -> float | None:
    """The quality so that more is better."""
    value = quality.value(row)
    return None if value is None else value if quality.upward else -value


def frontier_text(found: Frontier, *, colour: bool, width: int | None) -> str:
    """The table, then the points that were not reached or kept, and the notes."""
    paint = painter(colour)
    blocks = [rows_text(found.rows, paint)]
    broken = [point for point in found.points if point.status != "kept"]
    blocks.append("\n".join(paint(wrap(f"{p.status}: ", f"{p.name}: {p.why}", width), "bad") for p in broken))
    blocks.append("\n".join(wrap("note: ", note, width) for note in found.notes))
    return "\n\n".join(block for block in blocks if block) + "\n"


def rows_text(rows: Sequence[FrontierRow], paint: Paint) -> str:
    """Every artifact as a line, and what dominates it; "" without any."""
    if not rows:
        return ""
    cells = [[escaped(ascii_only(cell)) for cell in _cells(row)] for row in rows]
    head, *lines = aligned([list(_HEADS), *cells], left=_LEFT)
    styles = ("faint" if row.dominated_by else "strong" for row in rows)
    return "\n".join([paint(head, "faint"), *map(paint, lines, styles)])


def rows_json(rows: Sequence[FrontierRow]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [{"point": r.point, "dominated_by": r.dominated_by, **json_value(r.row)} for r in rows]


def of_point(point: str, row: Row) -> Row:
    """An artifact of a point, called so that it can stand beside those of others."""
    return row if row.pattern == "dense" else replace(row, name=f"{row.name}, {point}")


def frontier_html(found: Frontier) -> str:
    """The same as one page that opens offline, with the picture."""
    rows = [(_cells(row), row) for row in found.rows]
    return template("frontier.html.j2").render(
        style=style(), found=found, heads=_HEADS, rows=rows, left=_LEFT, picture=figure(found.rows), units=units
    )


def frontier_json(found: Frontier) -> dict[str, Any]:
    """The same for programs, with the numbers as they are."""
    about = ("model", "command", "machine", "points", "floor", "notes", "seconds")
    return {"format": 1, **{name: json_value(getattr(found, name)) for name in about}, "rows": rows_json(found.rows)}


def frontier_svg(rows: Sequence[FrontierRow]) -> str:
    """The picture alone, as a file; "" where no quality is known."""
    drawn = _drawn(rows)
    if drawn is None:
        return ""
    inside = Markup('<svg xmlns="http://www.w3.org/2000/svg"') + drawn.removeprefix(Markup("<svg"))
    return inside.replace("<title>", Markup("<style>{}</style><title>").format(style()), 1)


def figure(rows: Sequence[FrontierRow]) -> dict[str, Any] | None:
    """The picture of a page and what stands under it; None where no quality is known."""
    drawn = _drawn(rows)
    if drawn is None:
        return None
    quality = quality_axis([r.row for r in rows])
    assert quality is not None, "what is drawn has a quality"
    known = [r for r in rows if quality.value(r.row) is not None]
    return {
        "svg": drawn,
        "legend": legend([r.row for r in known]),
        "title": quality.title.partition(",")[0],
        "better": "up" if quality.upward else "down",
        "pale": sum(bool(r.dominated_by) for r in known),
        "left_out": ", ".join(f"{r.row.name} on {r.row.runtime}" for r in rows if r not in known),
    }


def _drawn(rows: Sequence[FrontierRow]) -> Markup | None:
    every = [r.row for r in rows]
    if not every or quality_axis(every) is None:
        return None
    pale = [r.row for r in rows if r.dominated_by]
    return scatter(every, width=_WIDE, height=_HIGH, dominated=pale, front=True)


def _cells(found: FrontierRow) -> list[str]:
    row = found.row
    return [
        row.name,
        row.runtime,
        units.quality_cell(row),
        units.significant(row.median_ms),
        units.ratio_with_interval(row.ratio, row.ratio_ci),
        units.scaled(row.macs),
        units.scaled(row.bytes, "B"),
        f"dominated by {found.dominated_by}" if found.dominated_by else "",
    ]
