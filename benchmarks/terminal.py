"""A command in a pseudo-terminal, and what it writes there."""

from __future__ import annotations

import os
import pty
import select
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ


@dataclass(frozen=True)
class News:
    """What a terminal saw at one time.

    Args:
        at: Seconds from the start of the command.
        text: Bytes; none at its end.
        code: How it ended, None while it runs.
    """

    at: float
    text: bytes = b""
    code: int | None = None


def in_terminal(words: list[str], folder: Path, *, rows: int = 40, columns: int = 120) -> Iterator[News]:
    """Run Python with these words in a folder; the last of the news is its end."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(folder)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, *words])
    ioctl(terminal, TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    begun = time.monotonic()
    while True:
        select.select([terminal], [], [])
        try:
            text = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            text = b""
        if not text:
            break
        yield News(time.monotonic() - begun, text)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    yield News(time.monotonic() - begun, code=os.waitstatus_to_exitcode(status))
