"""The command `validate`: does a build still keep what it has to, here and now?"""

from __future__ import annotations

from pathlib import Path

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import TARGET, Real, colour, console, shows_progress
from deploypruner.cli.recipe_options import command_option
from deploypruner.device.described import described
from deploypruner.errors import BudgetError, RecipeError
from deploypruner.ranges import MOST
from deploypruner.reading import report_file
from deploypruner.recipe.budget import parse_latency
from deploypruner.recipe.option import BUDGET, MEASURING, MODEL
from deploypruner.sources.named import data_kind


@click.command(
    "validate",
    cls=GroupedCommand,
    examples={"deploypruner validate build/ --max-latency 5ms --min-accuracy 0.92": ""},
)
@click.argument("build", type=click.Path(path_type=Path))
@command_option("--max-latency", group=BUDGET, metavar="TIME", help="Largest latency: 5ms, 800us, 5ms@p95.")
@command_option(
    "--min-accuracy",
    group=BUDGET,
    type=Real(-MOST, MOST),
    metavar="SHARE",
    help="Least accuracy, 0.92 for 92 %; of a metric that is no share the least value, of an error the largest.",
)
@command_option("--data", group=MODEL, metavar="DIR", help="Labelled data.  [default: the build's]")
@command_option(
    "--seconds",
    group=MEASURING,
    type=Real(1, MOST),
    default=10.0,
    show_default=True,
    help="Seconds of timing.",
)
@TARGET
@shows_progress
def validate_command(
    build: Path,
    max_latency: str | None,
    min_accuracy: float | None,
    data: str | None,
    seconds: float,
    target: str | None,
) -> None:
    """Measure the file that BUILD says to ship, on the machine it is for: 0 where it keeps every limit, 3 where not.

    The end of the latency's 95 % interval has to keep its limit; accuracy is of the validation data.
    """
    if max_latency is None and min_accuracy is None:
        raise RecipeError("there is nothing to validate", hint="give --max-latency 5ms, --min-accuracy 0.92, or both")
    report_file(build)
    if target is not None:
        described(target)
    if data is not None:
        data_kind(data)
    latency, quantile = (None, 0.5) if max_latency is None else parse_latency(max_latency)
    with console() as shown:
        from deploypruner.build.validated import Limits, validate

        limits = Limits(latency, quantile, min_accuracy)
        found = validate(build, limits, data=data, seconds=seconds, progress=shown, target=target)
    from deploypruner.report.terminal import ascii_only, painter
    from deploypruner.terminal import escaped

    paint = painter(colour())
    threads = f"{found.threads} thread{'' if found.threads == 1 else 's'}"
    click.echo(escaped(f"{found.file} on {found.runtime}, {threads}"))
    for check in found.checks:
        word, style = ("ok", "good") if check.kept else ("NOT CERTIFIED" if check.doubt else "NOT KEPT", "bad")
        doubt = f": {check.doubt}" if check.doubt else ""
        said = ascii_only(f"{check.name}  {check.found}  {check.limit}")
        click.echo(f"  {escaped(said)}  {paint(word, style)}{escaped(doubt)}")
    broken = [check for check in found.checks if not check.kept]
    if broken:
        names = " and ".join(check.name for check in broken)
        said = ascii_only("; ".join(f"{check.found}, {check.limit} asked" for check in broken))
        raise BudgetError(
            f"{found.file} does not keep its {names}: {said}",
            hint="a latency is known better on a quiet machine with more --seconds; else compile for that limit",
        )
