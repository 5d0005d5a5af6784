"""The report as plain text for a terminal or a pipe: ASCII, and complete without colour."""

from __future__ import annotations

from deploypruner.report import units
from deploypruner.report.columns import table_rows
from deploypruner.report.document import Report
from deploypruner.report.headline import headline
from deploypruner.report.terminal import Paint, clean, painter, wrap


def table(report: Report, *, colour: bool, width: int | None = None) -> str:
    """Return the whole report as text that ends in a line break.

    Args:
        report: What to print; at least one row.
        colour: Whether ANSI colours may be used.
        width: Columns available; None for no limit. Columns that do not fit are left out and named.
    """
    paint = painter(colour)
    result = headline(report)
    blocks = [
        paint(_title(report), "strong"),
        table_rows(report.rows, colour=colour, width=width),
        "\n".join([wrap("result: ", result.sentence, width), *(wrap("note: ", n, width) for n in result.notes)]),
        _budget(report, paint),
        _verification(report, paint),
        "\n".join(paint(wrap("warning: ", text, width), "warn") for text in report.warnings),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _title(report: Report) -> str:
    threads = sorted({row.threads for row in report.rows})
    parts = [
        str(report.model.get("name", "model")),
        f"target {report.target.get('name', units.UNKNOWN)}",
        str(report.target.get("processor", "")),
        f"{threads[0]} thread{'' if threads[0] == 1 else 's'}" if len(threads) == 1 else "",
    ]
    return "  ".join(clean(part) for part in parts if part)


def _budget(report: Report, paint: Paint) -> str:
    if not report.budget:
        return ""
    sentence = clean(units.budget_sentence(report.budget))
    return f"budget: {sentence}: {paint('met', 'good') if report.budget.get('met') else paint('NOT MET', 'bad')}"


def _verification(report: Report, paint: Paint) -> str:
    if not report.verification:
        return ""
    size = max(len(clean(check.name)) for check in report.verification)
    lines = ["verification:"]
    for check in report.verification:
        verdict = paint("ok    ", "good") if check.passed else paint("FAILED", "bad")
        found = f"max difference {units.difference(check.max_abs_diff):>12}"
        allowed = f"allowed {units.difference(check.tolerance):>7}"
        line = f"  {verdict}  {clean(check.name):<{size}}  {found}  {allowed}  {clean(check.detail)}"
        lines.append(line.rstrip())
    return "\n".join(lines)
