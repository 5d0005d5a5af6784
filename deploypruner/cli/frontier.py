"""The command `frontier`: several budgets of one model, one build each, one picture."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import colour, console, shows_progress, width
from deploypruner.cli.recipe_options import checked_recipe, command_option, recipe_options
from deploypruner.command_line import with_option
from deploypruner.errors import RecipeError
from deploypruner.recipe.option import BUDGET, GROUPS
from deploypruner.terminal import write_line


@click.command(
    "frontier",
    cls=GroupedCommand,
    examples={
        "deploypruner frontier model.pt2 --data photos/ --speedups 1.25,1.5,2,3": "four builds and one picture",
        "deploypruner frontier model.pt2 --data photos/ --latencies 5ms,8ms,12ms": "what 5, 8 and 12 ms give",
    },
)
@recipe_options(*GROUPS, without=("latency", "speedup", "macs"))
@command_option(
    "--speedups", group=BUDGET, metavar="1.25,1.5,2", help="Factors over the dense model's speed, one build for each."
)
@command_option(
    "--latencies", group=BUDGET, metavar="5ms,8ms", help="Times of one inference, one build for each; see --latency."
)
@command_option(
    "--out", default="frontier", show_default=True, type=click.Path(path_type=Path), help="Folder of the frontier."
)
@command_option("--resume", is_flag=True, help="Go on with the frontier in --out, or add points to it.")
@shows_progress
def frontier_command(out: Path, resume: bool, speedups: str | None, latencies: str | None, **options: Any) -> None:
    """Build MODEL for several budgets, and time all artifacts in one run.

    Every point is a whole build folder in --out/builds. They share the trace, the scores, the measured worths and the
    table of layers. A point out of reach costs no other one. MODEL is as for `compile`.
    """
    from deploypruner.frontier.asked import asked_points

    points = asked_points(_factors(speedups), [] if latencies is None else latencies.split(","))
    command = ["deploypruner", *sys.argv[1:]]
    with console() as shown:
        recipe, origins = checked_recipe(options)
        from deploypruner.frontier.run import FrontierRequest, run_frontier
        from deploypruner.latency.clock import timed_on

        timed = timed_on(recipe.target, runtimes=recipe.measure.runtimes, say=shown.say)
        with origins.speaking(), timed:
            found, broken = run_frontier(
                FrontierRequest(
                    recipe=recipe,
                    points=points,
                    out=out,
                    command=shlex.join(command),
                    resume=resume,
                    progress=shown,
                    log=shown.log,
                    say=shown.say,
                    detail=shown.detail,
                    longer=lambda seconds: _longer(command, seconds),
                )
            )
    from deploypruner.report.frontier import frontier_text

    click.echo(frontier_text(found, colour=colour(), width=width()), nl=False)
    if not shown.quiet:
        write_line(sys.stderr, "")
        write_line(sys.stderr, f"{out / 'frontier.html'} has the picture, {out / 'builds'} the builds")
    if broken is not None:
        missed = [point.name for point in found.points if point.status != "kept"]
        text = f"{len(missed)} of {len(found.points)} points are not kept ({', '.join(missed)}): {broken.message}"
        broken.message = text  # of whatever class: that decides the exit code
        raise broken


def _longer(command: list[str], seconds: float) -> str:
    """What was typed, with more time."""
    again = with_option(command, "--seconds", f"{seconds:.0f}")
    return f"`{shlex.join([word for word in again if word != '--resume'])} --resume`"


def _factors(text: str | None) -> list[float]:
    """ "1.25,1.5" -> [1.25, 1.5].

    Raises:
        RecipeError: Something in it is no number.
    """
    found = []
    for word in () if text is None else text.split(","):
        try:
            found.append(float(word.strip().removesuffix("x")))
        except ValueError:
            raise RecipeError(f"--speedups '{text}': '{word}' is not a number", hint="write 1.25,1.5,2") from None
    return found
