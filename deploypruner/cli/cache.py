"""The commands `cache list` and `cache clear`: timings kept between builds."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING

import click

from deploypruner.caches import cache_files, default_folder, delete
from deploypruner.cli.help import GroupedCommand
from deploypruner.cli.recipe_options import command_option
from deploypruner.errors import RecipeError
from deploypruner.terminal import escaped, write_line

if TYPE_CHECKING:
    from deploypruner.caches import CacheFile

_DAMAGED = "damaged"


@click.group("cache")
def cache_group() -> None:
    """Timings of layers and kernels that builds keep for later ones.

    They are in $DEPLOYPRUNER_CACHE, else in ~/.cache/deploypruner. Without them layers are timed again, which takes a
    minute or two.
    """


@cache_group.command("list", cls=GroupedCommand, examples={"deploypruner cache list": ""})
@command_option("--json", "as_document", is_flag=True, help="Everything as JSON, for a program.")
def list_command(as_document: bool) -> None:
    """What is kept, of which processor, how large and how old."""
    folder, files = default_folder(), cache_files()
    if as_document:
        click.echo(json.dumps({"folder": str(folder), "files": [_document(file) for file in files]}, indent=2))
        return
    _show(files)
    write_line(sys.stderr, f"{_count(files)} in {folder}")


@cache_group.command("clear", cls=GroupedCommand, examples={"deploypruner cache clear --yes": ""})
@command_option("--yes", is_flag=True, help="Delete without asking.")
def clear_command(yes: bool) -> None:
    """Delete what `cache list` shows, and nothing else in that folder."""
    folder, files = default_folder(), cache_files()
    if not files:
        write_line(sys.stderr, f"nothing to delete in {folder}")
        return
    if not yes and not sys.stdin.isatty():
        raise RecipeError("`cache clear` asks before it deletes, and nobody is there to answer", hint="add --yes")
    _show(files)
    if not yes and not click.confirm(escaped(f"delete {_count(files)} in {folder}?"), err=True):
        write_line(sys.stderr, "nothing was deleted")
        return
    delete(files)
    write_line(sys.stderr, f"deleted {_count(files)} in {folder}")


def _show(files: list[CacheFile]) -> None:
    """One line for each file: what it holds, of which processor, bytes and age, then its name."""
    now = time.time()
    rows = [
        (file.holds, file.setting, file.cpu or _DAMAGED, f"{file.bytes} B", f"{_age(now - file.changed)} old")
        for file in files
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for file, row in zip(files, rows, strict=True):
        cells = [f"{cell:{'>' if at in (3, 4) else '<'}{widths[at]}}" for at, cell in enumerate(row)]
        click.echo(escaped("  ".join((*cells, file.path.name))))


def _count(files: list[CacheFile]) -> str:
    return f"{len(files)} file{'' if len(files) == 1 else 's'} with {sum(file.bytes for file in files)} bytes"


def _age(seconds: float) -> str:
    """The largest unit that has one: "3 d", "2 h", "5 min"."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _document(file: CacheFile) -> dict[str, object]:
    return {**vars(file), "path": str(file.path), "damaged": file.cpu is None}
