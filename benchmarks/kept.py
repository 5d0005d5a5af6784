"""Results in one JSON file that several processes may add to."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click


def read(path: Path) -> dict[str, Any]:
    """What is there so far."""
    return json.loads(path.read_text()) if path.exists() else {}


@contextmanager
def changing(path: Path) -> Iterator[dict[str, Any]]:
    """What is there so far, to be changed; written at the end of the block, which one process at a time enters."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = read(path)
        yield rows
        part = path.with_suffix(".part")
        part.write_text(json.dumps(rows) + "\n")
        part.replace(path)


def not_in(path: Path, limit: int | None, results: Path) -> None:
    """Numbers on a part of the test images do not go into the file with the others.

    Raises:
        click.UsageError: They would.
    """
    if limit is not None and results == path:
        raise click.UsageError(f"results on a part of the images do not go into '{path.name}'; add --results FILE")


def judged_lines(rows: dict[str, Any], words: int, names: Sequence[str]) -> list[str]:
    """Lines of a markdown table of rows called "KEY NAME": KEY, of so many words, then KL and top-1 of each name."""
    lines = []
    for key in dict.fromkeys(tuple(key.split(" ", words)[:words]) for key in rows):
        cells = [rows.get(" ".join((*key, name))) for name in names]
        texts = ["" if cell is None else f"{cell['kl']:.3f}, {cell['top1']:.1f} %" for cell in cells]
        lines.append(f"| {' | '.join((*key, *texts))} |")
    return lines
