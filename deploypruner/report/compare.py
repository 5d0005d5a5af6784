"""Finished builds side by side: what each gives, and what makes their numbers no comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.report import units
from deploypruner.report.document import Report, json_value
from deploypruner.report.frontier import FrontierRow, figure, marked, of_point, rows_json, rows_of, rows_text
from deploypruner.report.gains import best_dense
from deploypruner.report.headline import headline
from deploypruner.report.page import style, template
from deploypruner.report.terminal import Paint, aligned, ascii_only, painter, wrap
from deploypruner.terminal import escaped

_HEADS = ("build", "ships", "runtime", "median, ms", "of dense", "speed-up", "accuracy", "MACs", "size", "budget")
_LEFT = 3
_NARROWEST = 13  # characters of a column in which intervals stay whole


@dataclass(frozen=True)
class Compared:
    """One build.

    Args:
        name: Its folder.
        model: What was compiled.
        artifact: Of the file to ship: the recommended one, else the fastest dense fp32.
        runtime: Of that file.
        median_ms: Of that file.
        dense_ms: Of the fastest dense fp32 file of the same build.
        ratio: Measured side by side against the dense model in the same runtime.
        ratio_ci: 95 % interval of `ratio`.
        verdict: faster, slower or indistinguishable.
        accuracy: In its metric's unit, with its interval and n as text; agreement where nothing is labelled.
        change: better, worse or indistinguishable from the dense model; "" where unknown.
        macs: Part of the dense model's.
        bytes: Of the file.
        budget: What was asked for, and whether it was met; "" without.
        lost: Did pruning lose?
    """

    name: str
    model: str
    artifact: str
    runtime: str
    median_ms: float
    dense_ms: float
    ratio: float
    ratio_ci: tuple[float, float]
    verdict: str
    accuracy: str
    change: str
    macs: float | None
    bytes: int
    budget: str
    lost: bool


def compared(name: str, report: Report) -> Compared:
    """A build as one line."""
    found, dense = headline(report), best_dense(report.rows) or report.rows[0]
    row = found.recommended or dense
    return Compared(
        name=name,
        model=str(report.model.get("name", "model")),
        artifact=row.name,
        runtime=row.runtime,
        median_ms=row.median_ms,
        dense_ms=dense.median_ms,
        ratio=row.ratio,
        ratio_ci=row.ratio_ci,
        verdict=row.verdict,
        accuracy=units.quality_cell(row),
        change=units.accuracy_verdict(row),
        macs=None if row.macs is None or not report.dense.macs else row.macs / report.dense.macs,
        bytes=row.bytes,
        budget=_budget(report),
        lost=found.lost,
    )


def remarks(reports: Sequence[Report]) -> list[str]:
    """Why numbers of these builds do not compare; each with what to do."""
    found = []
    if len({report.model.get("sha256") for report in reports}) > 1:
        found.append("the builds are of different models: only what each gained compares")
    machines = {(report.target.get("processor"), *(row.threads for row in report.rows[:1])) for report in reports}
    if len(machines) > 1:
        found.append("the builds were measured on different processors or threads: milliseconds do not compare")
    counts = {row.evaluated for report in reports for row in report.rows[:1] if row.evaluated}
    if len(counts) > 1:
        found.append("accuracy is of different numbers of inputs")
    if len(reports) > 1:
        found.append("milliseconds of two builds were not measured side by side; `deploypruner bench A B` does that")
    return found


def compared_rows(builds: Sequence[tuple[str, Report]]) -> tuple[FrontierRow, ...]:
    """Every artifact of several builds of one model, the dense ones of the first build alone; () otherwise.

    What was not measured side by side stands side by side here: `remarks` says so.

    Args:
        builds: Name and report.
    """
    if len(builds) < 2 or len({report.model.get("sha256") for _, report in builds}) > 1:
        return ()
    rows = [("" if row.pattern == "dense" else name, of_point(name, row)) for name, row in rows_of(builds)]
    return marked(rows, floor=max(float(report.settings.get("noise_floor") or 0.0) for _, report in builds))


def compare_text(
    lines: Sequence[Compared],
    notes: Sequence[str],
    artifacts: Sequence[FrontierRow] = (),
    *,
    colour: bool,
    width: int | None,
) -> str:
    """A line a build; where those do not fit a column, else a block. Then every artifact, from `compared_rows`."""
    paint = painter(colour)
    rows = [[escaped(ascii_only(cell)) for cell in _cells(line)] for line in lines]
    said = [wrap("note: ", note, width) for note in notes]
    head, *text = aligned([list(_HEADS), *rows], left=(*range(_LEFT), len(_HEADS) - 1))
    lost = [line.lost for line in lines]
    if width is None or max(map(len, (head, *text))) <= width:
        painted = [paint(row, "bad" if bad else "") for row, bad in zip(text, lost, strict=True)]
        blocks = [paint(head, "faint"), *painted, ""]
    else:
        blocks = _columns(rows, lost, paint=paint, width=width) or _blocks(rows, lost, paint=paint)
    table = [rows_text(artifacts, paint), ""] if artifacts else []
    return "\n".join([*blocks, *table, *said]) + "\n"


def _columns(rows: Sequence[Sequence[str]], lost: Sequence[bool], *, paint: Paint, width: int) -> list[str]:
    """A column a build, cells broken between words; nothing where one has a word that is too long for it."""
    first = max(map(len, _HEADS))
    wide = (width - first) // len(rows) - 2
    if wide < _NARROWEST:
        return []
    found = []
    for at, head in enumerate(_HEADS):
        cells = [wrap("", row[at], wide).splitlines() or [""] for row in rows]
        if max(len(part) for cell in cells for part in cell) > wide:
            return []
        for line in range(max(map(len, cells))):
            parts = [cell[line] if line < len(cell) else "" for cell in cells]
            styles = ["" if at else "bad" if bad else "strong" for bad in lost]
            painted = [paint(f"{part:{wide}}", style) for part, style in zip(parts, styles, strict=True)]
            found.append("  ".join([f"{'' if line else head:{first}}", *painted]).rstrip())
    return [*found, ""]


def _blocks(rows: Sequence[Sequence[str]], lost: Sequence[bool], *, paint: Paint) -> list[str]:
    """One below the other."""
    found = []
    for row, bad in zip(rows, lost, strict=True):
        found += [paint(row[0], "bad" if bad else "strong")]
        found += [*(f"  {head:<11}{cell}" for head, cell in zip(_HEADS[1:], row[1:], strict=True)), ""]
    return found


def compare_html(lines: Sequence[Compared], notes: Sequence[str], rows: Sequence[FrontierRow] = ()) -> str:
    """The same as one page that opens offline, with the picture of the artifacts."""
    cells = [(_cells(line), line) for line in lines]
    return template("compare.html.j2").render(
        style=style(), heads=_HEADS, rows=cells, notes=notes, left=_LEFT, picture=figure(rows)
    )


def compare_json(lines: Sequence[Compared], notes: Sequence[str], rows: Sequence[FrontierRow] = ()) -> dict[str, Any]:
    """The same for programs, with the numbers as they are."""
    builds = [{name: json_value(value) for name, value in asdict(line).items()} for line in lines]
    return {"format": 1, "builds": builds, "rows": rows_json(rows), "remarks": list(notes)}


def _cells(line: Compared) -> list[str]:
    return [
        line.name,
        f"{line.artifact} (pruning lost)" if line.lost else line.artifact,
        line.runtime,
        units.significant(line.median_ms),
        units.significant(line.dense_ms),
        units.ratio_with_interval(line.ratio, line.ratio_ci),
        f"{line.accuracy} {line.change}".rstrip(),
        units.UNKNOWN if line.macs is None else f"{100 * line.macs:.1f} %",
        units.scaled(line.bytes, "B"),
        line.budget or units.UNKNOWN,
    ]


def _budget(report: Report) -> str:
    if not report.budget:
        return ""
    kind = str(report.budget.get("kind", ""))
    asked = units.budget_value(kind, report.budget.get("requested"))
    return f"{kind} {asked}: {units.budget_verdict(report.budget)}"
