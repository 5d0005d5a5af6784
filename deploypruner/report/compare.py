"""Finished builds side by side: what each gives, and what makes their numbers no comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from deploypruner.records import Row
from deploypruner.report import units
from deploypruner.report.document import Report, json_value
from deploypruner.report.gains import best_dense
from deploypruner.report.headline import headline
from deploypruner.report.page import style, template
from deploypruner.report.terminal import ascii_only, painter, wrap
from deploypruner.terminal import escaped

_HEADS = ("build", "ships", "runtime", "median, ms", "of dense", "speed-up", "accuracy", "MACs", "size", "budget")
_LEFT = 3


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
        accuracy=_quality(row),
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


def compare_text(lines: Sequence[Compared], notes: Sequence[str], *, colour: bool, width: int | None) -> str:
    """Aligned columns; where they do not fit, one block a build."""
    paint = painter(colour)
    rows = [[escaped(ascii_only(cell)) for cell in _cells(line)] for line in lines]
    sizes = [max(len(row[i]) for row in (list(_HEADS), *rows)) for i in range(len(_HEADS))]
    said = [wrap("note: ", note, width) for note in notes]
    if width is not None and sum(sizes) + 2 * (len(sizes) - 1) > width:
        blocks = []
        for row, line in zip(rows, lines, strict=True):
            title = paint(row[0], "bad" if line.lost else "strong")
            blocks += [title, *(f"  {head:<11}{cell}" for head, cell in zip(_HEADS[1:], row[1:], strict=True)), ""]
        return "\n".join([*blocks, *said]) + "\n"
    text = [paint(_aligned(_HEADS, sizes), "faint")]
    text += [paint(_aligned(row, sizes), "bad" if line.lost else "") for row, line in zip(rows, lines, strict=True)]
    return "\n".join([*text, "", *said]) + "\n"


def compare_html(lines: Sequence[Compared], notes: Sequence[str]) -> str:
    """The same as one page that opens offline."""
    rows = [(_cells(line), line) for line in lines]
    return template("compare.html.j2").render(style=style(), heads=_HEADS, rows=rows, notes=notes, left=_LEFT)


def compare_json(lines: Sequence[Compared], notes: Sequence[str]) -> dict[str, Any]:
    """The same for programs, with the numbers as they are."""
    builds = [{name: json_value(value) for name, value in asdict(line).items()} for line in lines]
    return {"format": 1, "builds": builds, "remarks": list(notes)}


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


def _quality(row: Row) -> str:
    n = units.evaluated([row])
    text = units.accuracy_cell(row) if row.accuracy is not None else units.agreement_cell(row, [row])
    if row.accuracy is not None and row.metric.unit:
        text += f" {row.metric.unit}"
    return f"{text} ({n})" if n else text


def _budget(report: Report) -> str:
    if not report.budget:
        return ""
    kind = str(report.budget.get("kind", ""))
    asked = units.budget_value(kind, report.budget.get("requested"))
    return f"{kind} {asked}: {units.budget_verdict(report.budget)}"


def _aligned(cells: Sequence[str], sizes: Sequence[int]) -> str:
    return "  ".join(
        cell.ljust(size) if i < _LEFT or i == len(sizes) - 1 else cell.rjust(size)
        for i, (cell, size) in enumerate(zip(cells, sizes, strict=True))
    ).rstrip()
