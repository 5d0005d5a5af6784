"""The command `export`: one of the points that a build has measured, as files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import console, shows_progress
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.errors import RecipeError
from deploypruner.reading import report_file
from deploypruner.recipe.option import MODEL
from deploypruner.recipe.overrides import overrides
from deploypruner.terminal import escaped, escaped_lines, write_line


@click.command(
    "export",
    cls=GroupedCommand,
    examples={
        "deploypruner export build/": "what the build has measured on its way",
        "deploypruner export build/ --point plan-4 --out smaller/": "the files of one of them",
    },
)
@click.argument("folder", metavar="BUILD", type=click.Path(path_type=Path))
@command_option("--point", metavar="ID", help="Id of the point; without it all of them are listed.")
@command_option("--out", type=click.Path(path_type=Path), help="New folder for the files.")
@command_option("--model", group=MODEL, help="MODEL that the build was made from, where its recipe does not name it.")
@recipe_option("weights")
@recipe_option("data")
@recipe_option("trust_pickle")
@shows_progress
def export_command(
    folder: Path,
    point: str | None,
    out: Path | None,
    model: str | None,
    weights: Path | None,
    data: str | None,
    trust_pickle: bool | None,
) -> None:
    """Make the files of one point of a finished BUILD, or list its points.

    A point is anything the build measured on its way: a finished artifact, a mix of int8 and float, a plan of the
    search. Nothing is searched or trained again. Points of the search are repaired and not trained, and point.json
    says what their accuracy stands for.
    """
    if point is not None and out is None:
        raise RecipeError(f"there is no folder for point '{point}'", hint="name a new one with --out DIR")
    report_file(folder)
    with console() as shown:
        from deploypruner.build.exporting import export_point
        from deploypruner.report import read_report
        from deploypruner.report.points import points_text

        if point is None:
            text = points_text(read_report(folder).points)
        else:
            assert out is not None, "that was checked"
            changes = overrides({"model": model, "weights": weights, "data": data, "trust_pickle": trust_pickle})
            made = export_point(folder, point, out, changes=changes, say=shown.say, progress=shown)
    if point is None or out is None:
        click.echo(escaped_lines(text), nl=False)
        return
    click.echo(escaped(f"point {point}: {made.point['what']}, {made.stands_for}"))
    for name, found in made.found.items():
        click.echo(escaped(f"  {name}: {_quality(found)} on {found['samples']} samples in {found['runtime']}"))
    passed = sum(check.passed for check in made.checks)
    if not shown.quiet:
        write_line(sys.stderr, f"{passed} of {len(made.checks)} checks passed; {out / 'point.json'} has them all")


def _quality(found: Mapping[str, Any]) -> str:
    """The metric and the agreement of one file, as tables have them."""
    from deploypruner.report import units

    parts = []
    if found["value"] is not None:
        unit = " %" if found["unit"] == "%" else ""
        parts.append(f"{found['metric']} {units.accuracy(found['value'], found['unit'])}{unit}")
    if found["agreement"] is not None:
        parts.append(units.agreement_text(found["agreement"], found["agreement_kind"]))
    return ", ".join(parts)
