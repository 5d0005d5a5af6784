"""The report as plain text for a terminal or a pipe: ASCII, and complete without colour."""

from __future__ import annotations

from deploypruner.records import Check
from deploypruner.report import units
from deploypruner.report.advice import step_lines
from deploypruner.report.bounds import bounds_sentence
from deploypruner.report.chosen import chosen_sentence
from deploypruner.report.columns import table_rows
from deploypruner.report.document import Report
from deploypruner.report.headline import Headline, budget_verdict, headline
from deploypruner.report.noise import noise_sentence
from deploypruner.report.outputs import outputs_text
from deploypruner.report.points import points_sentence
from deploypruner.report.precision import precision_sentence
from deploypruner.report.ship import ship_lines
from deploypruner.report.sparse import assigned_sentence, assigned_table, sparse_sentence
from deploypruner.report.terminal import Paint, ascii_only, painter, wrap
from deploypruner.terminal import escaped


def table(report: Report, *, colour: bool, width: int | None = None) -> str:
    """Return the whole report as text that ends in a line break.

    Args:
        report: What to print; at least one row.
        colour: Whether ANSI colours may be used.
        width: Columns available; None for no limit. Columns that do not fit are left out and named.
    """
    paint = painter(colour)
    rows = table_rows(report.rows, colour=colour, width=width)
    # A network that is worth nothing any more must not be taken for the speed-up in its table.
    found = headline(report)
    result = _result(found, paint, width)
    by_output = outputs_text(report.rows)
    blocks = [
        paint(_title(report), "strong"),
        *((result, rows, by_output) if found.bad else (rows, by_output, result)),
        "\n".join(ship_lines(report, width)),
        _budget(report, found, paint, width=width),
        _precision(report, width),
        _sparse(report, width),
        wrap("points: ", said, width) if (said := points_sentence(report.points)) else "",
        _verification(report, paint, width),
        "\n".join(paint(wrap("warning: ", text, width), "warn") for text in report.warnings),
        paint(wrap("noise: ", noise_sentence(report), width), "warn") if report.noise else "",
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
    return "  ".join(escaped(part) for part in parts if part)


def _result(found: Headline, paint: Paint, width: int | None) -> str:
    notes = [wrap("note: ", ascii_only(note), width) for note in found.notes]
    steps = [wrap("next: ", text, width) for text in step_lines(found.steps)]
    style = "bad" if found.bad else ""
    return "\n".join([_painted(wrap("result: ", ascii_only(found.sentence), width), paint, style), *steps, *notes])


def _budget(report: Report, found: Headline, paint: Paint, *, width: int | None) -> str:
    if not report.budget:
        return ""
    sentence = units.budget_sentence(report.budget)
    verdict, style = budget_verdict(report, found)
    # The verdict stays in one piece where the line is broken, and only it has a colour.
    text = wrap("budget: ", f"{sentence}: {verdict.replace(' ', '_')}", width)
    lines = [text[: -len(verdict)] + paint(verdict, style)]
    said = {"bounds: ": bounds_sentence(report.budget), "chosen: ": chosen_sentence(report)}
    return "\n".join([*lines, *(wrap(name, text, width) for name, text in said.items() if text)])


def _painted(text: str, paint: Paint, style: str) -> str:
    """Each line by itself, so that a pager that cuts lines does not lose the colour."""
    return "\n".join(paint(line, style) for line in text.splitlines())


def _precision(report: Report, width: int | None) -> str:
    sentence = precision_sentence(report.precision)
    return wrap("precision: ", sentence, width) if sentence else ""


def _sparse(report: Report, width: int | None) -> str:
    if not report.sparse:
        return ""
    assigned = assigned_sentence(report.sparse)
    return "\n".join(
        [
            wrap("sparse: ", sparse_sentence(report.sparse), width),
            *([wrap("patterns: ", assigned, width)] if assigned else []),
            *map(escaped, assigned_table(report.sparse)),
        ]
    )


def _verification(report: Report, paint: Paint, width: int | None) -> str:
    if not report.verification:
        return ""
    if all(check.passed for check in report.verification):  # each of them is on the page
        return f"verification: {paint('ok', 'good')}, {len(report.verification)} of {len(report.verification)} checks"
    size = max(len(escaped(check.name)) for check in report.verification)
    longest = max(len(_difference(check, short=False)) for check in report.verification)
    short = width is not None and len("  FAILED    ") + size + longest > width
    lines = ["verification:"]
    for check in report.verification:
        verdict = paint("ok    ", "good") if check.passed else paint("FAILED", "bad")
        lines.append(f"  {verdict}  {escaped(check.name):<{size}}  {_difference(check, short=short)}".rstrip())
    return "\n".join(lines)


def _difference(check: Check, *, short: bool) -> str:
    """What was found against what is allowed; `short` leaves out the words and the detail."""
    found, allowed = units.difference(check.max_abs_diff), units.difference(check.tolerance)
    if short:
        return f"{found:>7} {'<=' if check.passed else '> '} {allowed}"
    return f"max difference {found:>12}  allowed {allowed:>7}  {escaped(check.detail)}".rstrip()
