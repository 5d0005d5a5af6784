"""The log of a command: every line that it said or could have said, with its time; files are only added to."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import TextIO

from deploypruner.atomic import ERRORS, os_errors
from deploypruner.errors import InputError
from deploypruner.reading import status
from deploypruner.terminal import escaped

LOG = "log.txt"
"""Name of a build's own, in its folder."""

_STAMP = "%Y-%m-%d %H:%M:%S"
_STAMPED = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


class Logbook:
    """Keeps lines from the first one on, and writes them to every file that it is given, as they come.

    Args:
        now: The time as it is written; a test may pass its own.
    """

    def __init__(self, now: Callable[[], str] = lambda: time.strftime(_STAMP)) -> None:
        self._now = now
        self._lines: list[str] = []
        self._files: list[TextIO] = []

    def __call__(self, text: str) -> None:
        """Add a line, or several."""
        for line in text.splitlines():
            self._lines.append(f"{self._now()} {escaped(line)}\n")
            for file in tuple(self._files):
                self._write(file, self._lines[-1])

    def keep_in(self, path: Path, *, instead: str = "choose another --log") -> None:
        """Write everything to this file, too, behind what it holds; nothing where that is done already.

        Args:
            path: A log of ours, or a new file.
            instead: What to do where it cannot be written to.

        Raises:
            InputError: It is something else, or cannot be written to.
        """
        if any(Path(file.name) == path for file in self._files):
            return
        found = status(path, what="--log")
        with os_errors(path, instead):
            if found is not None and S_ISREG(found.st_mode) and found.st_size:
                with path.open("rb") as file:
                    ours = _STAMPED.match(file.read(20))
                if ours is None:
                    raise InputError(
                        f"'{path}' is there and is no log", hint="--log takes a new file, or one it wrote before"
                    )
            file_ = path.open("a", encoding="utf-8", errors=ERRORS)  # until `close`: lines come one at a time
        self._files.append(file_)
        self._write(file_, "".join(self._lines))

    def close(self) -> None:
        """End every file."""
        for file in self._files:
            file.close()
        self._files = []

    def _write(self, file: TextIO, text: str) -> None:
        """A log that cannot be written to any more ends no work."""
        try:
            file.write(text)
            file.flush()
        except OSError:
            self._files.remove(file)
