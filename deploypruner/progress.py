"""How far a long job is: a bar on a terminal, plain lines elsewhere, nothing for library users."""

from __future__ import annotations

import os
import sys
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from deploypruner.terminal import escaped, write_line


class Progress(Protocol):
    """Receives the steps of one job at a time.

    A job calls `start` once, `advance` any number of times and `close` once, also when it fails.
    """

    def start(self, total: int, label: str) -> None:
        """Begin a job of `total` steps; `label` names it to the user: "recover"."""

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count `n` more steps. A non-empty `text` is a milestone worth a line: "epoch 2 of 5, loss 0.31"."""

    def close(self) -> None:
        """End the job."""


class SilentProgress:
    """Shows nothing; what functions use when they are given no progress."""

    def start(self, total: int, label: str) -> None:
        """Ignore the job."""

    def advance(self, n: int = 1, text: str = "") -> None:
        """Ignore the steps."""

    def close(self) -> None:
        """Do nothing."""


class LineProgress:
    """One plain line for each milestone, without control characters: for logs and pipes.

    Args:
        stream: Where the lines go.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label = ""

    def start(self, total: int, label: str) -> None:
        """Remember the label; the first milestone prints it."""
        self._label = label

    def advance(self, n: int = 1, text: str = "") -> None:
        """Write "label: text" where there is a text."""
        if text:
            write_line(self._stream, f"{self._label}: {text}")

    def close(self) -> None:
        """Do nothing: every line is already written."""


class BarProgress:
    """A bar with the latest milestone beside it; rich leaves out colour where `NO_COLOR` is set.

    Args:
        stream: A terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream)
        self._bar: RichProgress | None = None
        self._task = TaskID(0)

    def start(self, total: int, label: str) -> None:
        """Draw an empty bar, after finishing the one before."""
        self.close()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[milestone]}", markup=False),
            console=self._console,
        )
        self._task = self._bar.add_task(label, total=total, milestone="")
        self._bar.start()

    def advance(self, n: int = 1, text: str = "") -> None:
        """Move the bar by `n` steps and show `text` until the next milestone."""
        if self._bar is None:
            return
        self._bar.advance(self._task, n)
        if text:
            self._bar.update(self._task, milestone=escaped(text))

    def close(self) -> None:
        """Leave the bar as it is and give the terminal back."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_for(stream: TextIO | None = None) -> Progress:
    """A bar where `stream` (stderr when None) is a terminal that can redraw a line, plain lines otherwise."""
    stream = sys.stderr if stream is None else stream
    redraws = stream.isatty() and os.environ.get("TERM", "") != "dumb"
    return BarProgress(stream) if redraws else LineProgress(stream)
