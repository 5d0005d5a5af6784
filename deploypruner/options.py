"""Options that several commands share, and what a command needs to know of the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import click

RUNTIME = click.option(
    "--runtime",
    multiple=True,
    metavar="NAME",
    help="openvino, onnxruntime, torch; repeat for several.  [default: openvino and onnxruntime]",
)
THREADS = click.option("--threads", type=click.IntRange(1), help="Of every runtime.  [default: 1]")
SECONDS = click.option("--seconds", type=click.FloatRange(1), help="Time for measuring.  [default: 20]")


def sparse_options(command: Callable[..., None]) -> Callable[..., None]:
    """Which weights become zero, and how; see `sparse_overrides`."""
    for option in reversed(
        (
            click.option(
                "--pattern",
                multiple=True,
                metavar="NAME",
                help="channel, 2:4, nm64, ...; channel and one other combine. See `deploypruner list patterns`.",
            ),
            click.option("--sparsity", type=float, metavar="FRACTION", help="Of the weights, zero.  [default: 0.8]"),
            click.option("--sparse-schedule", metavar="NAME", help="See `deploypruner list sparse-schedules`."),
            click.option(
                "--sparse-layers",
                multiple=True,
                metavar="KIND",
                help="1x1, conv, linear, stem, depthwise, classifier.  [default: 1x1,conv,linear]",
            ),
            click.option("--sparse-only", multiple=True, metavar="PATTERN", help="Only modules so called; repeat."),
            click.option(
                "--sparse-exclude", multiple=True, metavar="PATTERN", help="Modules to leave dense; repeat."
            ),
        )
    ):
        command = option(command)
    return command


def sparse_patterns(options: dict[str, Any]) -> tuple[str, ...] | None:
    """What --pattern named, repeated or with commas; None where it was not given."""
    return _listed(options.get("pattern"))


def sparse_overrides(options: dict[str, Any]) -> dict[str, Any]:
    """The [sparse] section as the command line gives it."""
    return {
        "sparsity": options.get("sparsity"),
        "schedule": options.get("sparse_schedule"),
        "layers": _listed(options.get("sparse_layers")),
        "only": options.get("sparse_only") or None,
        "exclude": options.get("sparse_exclude") or None,
    }


def _listed(values: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return tuple(part.strip() for value in values or () for part in value.split(",")) or None


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
