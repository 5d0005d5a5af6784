"""Options that several commands share, and what a command needs to know of the terminal."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

import deploypruner
from deploypruner.build.folder import BuildFolder
from deploypruner.build.place import place_for
from deploypruner.cli.help import Grouped
from deploypruner.command_line import with_option
from deploypruner.logbook import Logbook
from deploypruner.progress import Console, redraws
from deploypruner.ranges import MOST, SEEDS
from deploypruner.ranges import THREADS as MOST_THREADS
from deploypruner.recipe.option import MEASURING, OUTPUT


class Real(click.FloatRange):
    """A number in a range, which "nan" is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number that was typed."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


def shape_of(text: str) -> tuple[int, ...]:
    """ "1,3,224,224" or "1x3x224x224" -> (1, 3, 224, 224); () for what is no shape."""
    try:
        shape = tuple(int(size) for size in text.replace("x", ",").split(","))
    except ValueError:
        return ()
    return shape if min(shape) >= 1 else ()


class OpenThreads(click.IntRange):
    """A number of threads, or the word that leaves it open."""

    def __init__(self) -> None:
        super().__init__(1, MOST_THREADS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number, or "auto"."""
        return value if value == "auto" else super().convert(value, param, ctx)


# Of options that are checked before any recipe is read.
RANGES: dict[str, click.ParamType] = {"threads": OpenThreads(), "seconds": Real(1, MOST)}

# Of commands that time what is there, side by side: with one number for all.
THREADS = click.option(
    "--threads",
    type=click.IntRange(1, MOST_THREADS),
    metavar="N",
    cls=Grouped,
    group=MEASURING,
    help=f"Number of threads of every runtime, 1 to {MOST_THREADS}.  [default: 1]",
)

# Of commands that time a build, which has a machine of its own.
TARGET = click.option(
    "--target",
    metavar="NAME",
    cls=Grouped,
    group=MEASURING,
    help="Machine to measure on: cpu (here), ssh://user@host[:port], or a name of `target list`.  [default: the "
    "build's]",
)

SEED = click.option(
    "--seed",
    type=click.IntRange(0, SEEDS),
    metavar="N",
    default=0,
    show_default=True,
    cls=Grouped,
    group=MEASURING,
    basic=False,
    help="Number that decides every random choice.",
)
BATCH = click.option(
    "--batch",
    type=click.IntRange(1, MOST),
    metavar="N",
    cls=Grouped,
    group=MEASURING,
    basic=False,
    help="Number of images at a time that it is to run with.  [default: the file's, else 1]",
)

OVERWRITE = click.option(
    "--overwrite",
    is_flag=True,
    cls=Grouped,
    group=OUTPUT,
    help="Replace what is finished in --out, once the new one is.",
)


def require_place(out: Path, kind: str = "build", *, overwrite: bool) -> None:
    """Refuse a folder with something finished in it before any work, and offer this command with another one.

    Raises:
        InputError: It holds something finished that may not be replaced.
    """
    place_for(BuildFolder(out, kind, names=()), overwrite=overwrite, offer=_offer)


def _offer(free: Path) -> str:
    command = shlex.join(with_option(["deploypruner", *sys.argv[1:]], "--out", str(free)))
    return f"`{command}` leaves it alone; --overwrite replaces it once the new one is finished"


def _kept(context: click.Context, parameter: click.Parameter, value: object) -> None:
    context.meta[f"deploypruner.{parameter.name}"] = value


def shows_progress(command: Any) -> Any:
    """Options of a command that says how far it is, see `console`."""
    about: dict[str, Any] = {"expose_value": False, "callback": _kept, "cls": Grouped, "group": OUTPUT}
    verbose = click.option("-v", "--verbose", is_flag=True, help="Print every milestone and detail, too.", **about)
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print the result and errors alone.", **about)
    log = click.option(
        "--log",
        type=click.Path(path_type=Path, dir_okay=False),
        metavar="FILE",
        help="Add everything that is said or could be to this file, with the time.",
        **about,
    )
    return verbose(quiet(log(command)))


@contextmanager
def console() -> Iterator[Console]:
    """Yield what shows how far this command is, as its options say.

    Raises:
        InputError: What is named for the log is something else.
    """
    meta = click.get_current_context().meta
    verbose, quiet, file = (meta.get(f"deploypruner.{name}") for name in ("verbose", "quiet", "log"))
    log = Logbook()
    log(f"deploypruner {deploypruner.__version__}: {shlex.join(['deploypruner', *sys.argv[1:]])}")
    try:
        if file is not None:
            log.keep_in(file)
        with Console(
            sys.stderr, live=redraws(sys.stderr), verbose=bool(verbose), quiet=bool(quiet), log=log
        ) as shown:
            yield shown
    finally:
        log.close()


def colour() -> bool:
    """True where stdout is a terminal that wants colour."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def width() -> int | None:
    """Columns of the terminal; files and pipes get everything."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
