"""The command `measure`: a finished build, timed again or for longer, with nothing of it made anew."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import click

from deploypruner.build.folder import BuildFolder
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import RANGES, TARGET, THREADS, colour, console, shows_progress, width
from deploypruner.cli.recipe_options import command_option, recipe_option
from deploypruner.device.described import described
from deploypruner.recipe.option import MEASURING
from deploypruner.recipe.overrides import chosen_runtimes
from deploypruner.registries import runtimes
from deploypruner.terminal import write_line


@click.command("measure", cls=GroupedCommand, examples={"deploypruner measure build/ --seconds 60 --threads 2": ""})
@click.argument("build", type=click.Path(path_type=Path))
@recipe_option("runtime")
@THREADS
@command_option(
    "--seconds",
    group=MEASURING,
    type=RANGES["seconds"],
    default=60.0,
    show_default=True,
    help="Time for measuring, at most; less where every ratio is known to ± 2 %.",
)
@TARGET
@shows_progress
def measure_command(
    build: Path, runtime: tuple[str, ...], threads: int | None, seconds: float, target: str | None
) -> None:
    """Time a finished BUILD again, without making anything again.

    Its rows, samples, certificate and page are renewed; rows of runtimes that are not named, and every accuracy, stay
    as they were. Exit code 3 where the budget is not certified, after the table.
    """
    names = chosen_runtimes(runtime)
    for name in names or ():
        runtimes.check(name)
    if target is not None:
        described(target)
    BuildFolder(build, names=()).require_finished()
    with console() as shown:
        from deploypruner.build.again import AgainRequest, measure_again, require_promised

        report = measure_again(AgainRequest(build, seconds, threads, names, shown, target=target))
    from deploypruner.report import table

    say = partial(write_line, sys.stderr)
    click.echo(table(report, colour=colour(), width=width()), nl=False)
    if not shown.quiet:
        say("")
        say(f"{build / 'report.html'} and the samples are of this measurement now")
    require_promised(report, build)
