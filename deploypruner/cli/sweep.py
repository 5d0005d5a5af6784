"""The command `sweep`: a population of recipes of one cost, what it teaches, and the best of them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.options import colour, console, shows_progress, width
from deploypruner.cli.recipe_options import checked_recipe, command_option, recipe_options
from deploypruner.errors import RecipeError
from deploypruner.recipe.option import BUDGET, GROUPS, SPARSE
from deploypruner.terminal import write_line


@click.command(
    "sweep",
    cls=GroupedCommand,
    examples={
        "deploypruner sweep model.pt2 --data photos/ --macs 0.5 --samples 128": "train 128 recipes of half the MACs",
        "deploypruner sweep model.pt2 --data photos/ --speedup 2 --workers 8": "recipes of equal predicted time",
        "deploypruner sweep --status sweep/": "how far it is, from another terminal",
    },
)
@recipe_options(
    *(group for group in GROUPS if group != SPARSE), without=("latency", "scope", "search_minutes", "depth")
)
@command_option(
    "--samples", group=BUDGET, type=int, default=64, show_default=True, metavar="N", help="Recipes to train."
)
@command_option(
    "--ratio-std",
    group=BUDGET,
    default="0,0.3",
    show_default=True,
    metavar="LOW,HIGH",
    help="Range of the standard deviation of the ratios of one recipe, 0 to 1.",
)
@command_option(
    "--candidates",
    group=BUDGET,
    type=int,
    default=64,
    show_default=True,
    metavar="N",
    help="Recipes that the refined search looks at before any training; 0 for no refined search.",
)
@command_option(
    "--finalists", group=BUDGET, type=int, default=4, show_default=True, metavar="N", help="Best of them, trained."
)
@command_option(
    "--again", group=BUDGET, type=int, default=2, show_default=True, metavar="N", help="New seeds for each winner."
)
@command_option(
    "--workers", type=int, default=1, show_default=True, metavar="N", help="Processes at a time, of one thread each."
)
@command_option(
    "--ray",
    default="",
    is_flag=False,
    flag_value="here",
    metavar="[ADDRESS]",
    help="Trials are tasks of Ray: of a cluster, or, without an address, of this machine with --workers at a time.",
)
@command_option(
    "--beside",
    multiple=True,
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Sweep of the same model at another cost, for the conjectures about several; repeat.",
)
@command_option(
    "--out", default="sweep", show_default=True, type=click.Path(path_type=Path), help="Folder of the sweep."
)
@command_option("--resume", is_flag=True, help="Go on with the sweep in --out, also with more --samples.")
@command_option(
    "--status",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Say how far the sweep in DIR is, and do nothing.",
)
@shows_progress
def sweep_command(out: Path, resume: bool, status: Path | None, beside: tuple[Path, ...], **options: Any) -> None:
    """Train recipes of equal cost for MODEL, say what they teach, and write the best one.

    Recipes are sampled at a share of the MACs (--macs) or of the time (--speedup, as predicted). winner.toml in --out
    is for `compile --recipe`. MODEL is as for `compile`.
    """
    if status is not None:
        from deploypruner.sweep.status import sweep_status

        click.echo(sweep_status(status).text)
        return
    counts = {name: options.pop(name) for name in ("samples", "candidates", "finalists", "again", "workers", "ray")}
    spread = _range(options.pop("ratio_std"))
    command = ["deploypruner", *sys.argv[1:]]
    with console() as shown:
        recipe, origins = checked_recipe(options)
        from deploypruner.sweep.records import SweepSettings
        from deploypruner.sweep.request import SweepRequest
        from deploypruner.sweep.run import run_sweep

        with origins.speaking():
            found = run_sweep(
                SweepRequest(
                    recipe=recipe,
                    settings=SweepSettings(std=spread, **counts),
                    out=out,
                    command=shlex.join(command),
                    beside=beside,
                    resume=resume,
                    progress=shown,
                    log=shown.log,
                    say=shown.say,
                    detail=shown.detail,
                )
            )
    from deploypruner.sweep.page import sweep_text

    click.echo(sweep_text(found, colour=colour(), width=width()), nl=False)
    if not shown.quiet:
        write_line(sys.stderr, "")
        write_line(
            sys.stderr,
            f"{out / 'sweep.html'} has the pictures; `deploypruner compile --recipe {out / 'winner.toml'}` builds "
            f"the winner",
        )


def _range(text: str) -> tuple[float, float]:
    """ "0.05,0.15" -> (0.05, 0.15).

    Raises:
        RecipeError: It is no pair of numbers.
    """
    try:
        low, high = (float(word) for word in text.split(","))
    except ValueError:
        raise RecipeError(f"--ratio-std '{text}' is not two numbers", hint="write 0,0.3 or 0.05,0.15") from None
    return low, high
