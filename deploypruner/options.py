"""Options that several commands share, and what a command needs to know of the terminal."""

from __future__ import annotations

import math
import os
import shutil
import sys
from typing import Any

import click

from deploypruner.ranges import MOST, SEEDS
from deploypruner.ranges import THREADS as MOST_THREADS


class Real(click.FloatRange):
    """A number in a range, which "nan" is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that was typed."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


RUNTIME = click.option(
    "--runtime",
    multiple=True,
    metavar="NAME",
    help="openvino, onnxruntime, torch; repeat for several.  [default: openvino and onnxruntime]",
)
THREADS = click.option("--threads", type=click.IntRange(1, MOST_THREADS), help="Of every runtime.  [default: 1]")
SECONDS = click.option("--seconds", type=Real(1, MOST), help="Time for measuring.  [default: 20]")
SEED = click.option("--seed", type=click.IntRange(0, SEEDS), default=0, show_default=True)
BATCH = click.option(
    "--batch",
    type=click.IntRange(1, MOST),
    help="Images at a time that it is to run with.  [default: the file's, else 1]",
)

# How often a waiting thread of torch looks again before it sleeps; see `cli.main`.
SPINNING = ("GOMP_SPINCOUNT", "1000")


def chosen_runtimes(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What --runtime named, None where that is nothing or only "auto"."""
    chosen = tuple(name for name in names or () if name != "auto")
    return chosen or None


def colour() -> bool:
    """True where stdout is a terminal that wants colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width() -> int | None:
    """Columns of the terminal; files and pipes get everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
