"""The command `compare`: finished builds side by side."""

from __future__ import annotations

import json
from pathlib import Path

import click

from deploypruner.atomic import ERRORS, replacing
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import colour, console, width
from deploypruner.cli.recipe_options import command_option
from deploypruner.errors import InputError
from deploypruner.reading import report_file, status


@click.command(
    "compare", cls=GroupedCommand, examples={"deploypruner compare build/ build-2/ --html compared.html": ""}
)
@click.argument("builds", nargs=-1, required=True, type=click.Path(path_type=Path))
@command_option("--json", "document", metavar="FILE", help="The numbers as JSON; - for stdout.")
@command_option(
    "--html", "page", metavar="FILE", help="The same as a page, with a picture where all are of one model."
)
@command_option("--svg", "picture", metavar="FILE", help="The picture alone: accuracy against latency.")
def compare_command(builds: tuple[Path, ...], document: str | None, page: str | None, picture: str | None) -> None:
    """Finished builds side by side: what each ships, its speed, its accuracy, and whether its budget was met.

    Of builds of one model also every artifact, and which others dominate it: are as fast and as good, and better in
    one. Nothing is measured: `bench` times builds side by side.
    """
    for name, first in ((document, b"{"), (page, b"<"), (picture, b"<")):
        _check_new(name, first)
    for folder in builds:
        report_file(folder)
    with console():
        from deploypruner.report import read_report
        from deploypruner.report.compare import (
            compare_html,
            compare_json,
            compare_text,
            compared,
            compared_rows,
            remarks,
        )
        from deploypruner.report.frontier import frontier_svg

        reports = [(_name(folder), read_report(folder)) for folder in builds]
        lines, rows = [compared(name, report) for name, report in reports], compared_rows(reports)
        notes, drawn = remarks([report for _, report in reports]), frontier_svg(rows)
        html = compare_html(lines, notes, rows) if page is not None else ""
    if picture is not None and not drawn:
        raise InputError(
            "there is nothing to draw for --svg", hint="name at least two builds of one model, made with --data"
        )
    text = json.dumps(compare_json(lines, notes, rows), indent=2, allow_nan=False)
    if document == "-":
        click.echo(text)
    else:
        click.echo(compare_text(lines, notes, rows, colour=colour(), width=width()), nl=False)
    for name, content in ((document, text + "\n"), (page, html), (picture, drawn)):
        if name not in (None, "-"):
            with replacing(Path(str(name)).resolve(), instead="name a file that can be written to") as temporary:
                temporary.write_text(content, encoding="utf-8", errors=ERRORS)


def _name(folder: Path) -> str:
    """As the user calls it, without the file that stands for the build."""
    found = folder.parent if folder.name == "report.json" else folder
    return str(found)


def _check_new(name: str | None, first: bytes) -> None:
    """A file that is replaced must be of the kind that is written there.

    Raises:
        InputError: It is there and is another kind, or is a folder.
    """
    if name in (None, "-") or (found := status(Path(str(name)), what="file")) is None:
        return
    path = Path(str(name))
    if path.is_dir() or (found.st_size and path.read_bytes()[:64].lstrip()[:1] != first):
        raise InputError(f"'{path}' is there and is something else", hint="name a new file")
