"""Options that several commands share, and what a command needs to know of the terminal."""

from __future__ import annotations

import os
import shutil
import sys

import click

RUNTIME = click.option(
    "--runtime",
    multiple=True,
    metavar="NAME",
    help="openvino, onnxruntime, torch; repeat for several.  [default: openvino and onnxruntime]",
)
THREADS = click.option("--threads", type=click.IntRange(1), help="Of every runtime.  [default: 1]")
SECONDS = click.option("--seconds", type=click.FloatRange(1), help="Time for measuring.  [default: 20]")

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
