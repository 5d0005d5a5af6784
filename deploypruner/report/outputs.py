"""Each output of a model by itself: shown where there are several, or where one number does not say it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.records import OutputQuality, Row
from deploypruner.report import units
from deploypruner.report.headline import group_rows
from deploypruner.terminal import escaped

# Tasks whose column in the table is all there is to say.
_SAID = ("classification", "ids")


@dataclass(frozen=True)
class OutputLine:
    """One output of one row as text.

    Args:
        output: Its name.
        task: What it is.
        artifact: Name of the row.
        runtime: Of the row.
        scores: On the labels: "R2 0.452, MAE 43.1"; "" without.
        against: Against the dense model: "cosine 0.9987, cosine min 0.91, relative error 3.1 %"; "" without.
    """

    output: str
    task: str
    artifact: str
    runtime: str
    scores: str
    against: str


def output_lines(rows: Sequence[Row]) -> list[OutputLine]:
    """Every output of every row, output by output; none where the table says it all."""
    if not any(len(row.outputs) > 1 or any(o.task not in _SAID for o in row.outputs) for row in rows):
        return []
    names = dict.fromkeys(output.output for row in rows for output in row.outputs)
    return [
        _line(output, row)
        for name in names
        for group in group_rows(rows)
        for row in group.rows
        for output in row.outputs
        if output.output == name
    ]


def outputs_text(rows: Sequence[Row]) -> str:
    """The same for a terminal; "" where the table says it all."""
    lines, text = output_lines(rows), []
    heading = ""
    size = max((len(escaped(line.artifact)) for line in lines), default=0)
    for line in lines:
        new = f"{escaped(line.output)} ({line.task}) on {escaped(line.runtime)}:"
        if new != heading:
            text.append(new)
            heading = new
        parts = [line.scores, f"against dense: {line.against}" if line.against else ""]
        text.append(f"  {escaped(line.artifact):<{size}}  {'; '.join(part for part in parts if part)}".rstrip())
    return "\n".join(text)


def _line(output: OutputQuality, row: Row) -> OutputLine:
    scores = [f"{name} {_score(name, value, output)}" for name, value in output.scores.items()]
    agreed = f"{output.agreement_kind} {units.agreement(output.agreement, output.agreement_kind)}"
    details = [
        f"{name} {_detail(name, value)}" for name, value in output.details.items() if name != output.agreement_kind
    ]
    against = [agreed, *details] if output.agreement is not None else []
    return OutputLine(output.output, output.task, row.name, row.runtime, ", ".join(scores), ", ".join(against))


def _score(name: str, value: float | None, output: OutputQuality) -> str:
    """Metrics in percent carry their sign; a relative error is a share."""
    if name == units.RELATIVE_ERROR:
        return _detail(name, value)
    percent = output.metric is not None and output.metric.unit == "%"
    text = units.accuracy(value, "%" if percent else "")
    return f"{text} %" if percent and text != units.UNKNOWN else text


def _detail(name: str, value: float | None) -> str:
    """Shares in percent, what has to do with a cosine as it is."""
    if value is None:
        return units.UNKNOWN
    return f"{value:.4f}" if name.startswith("cosine") else f"{100 * value:.1f} %"
