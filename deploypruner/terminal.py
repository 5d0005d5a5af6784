"""What goes to the terminal: names that cannot misbehave, streams that may be closed."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO


def escaped(text: str) -> str:
    r"""`text` with control characters, direction marks and undecodable bytes written out: "\x1b".

    Names come from files and users. A terminal obeys escape sequences, whoever wrote them.
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def escaped_lines(text: str) -> str:
    """As `escaped`, for text of several lines."""
    return "\n".join(map(escaped, text.split("\n")))


def open_streams() -> None:
    """Make stdin, stdout and stderr usable whatever they were started with.

    A closed descriptor would be given to the next file that is opened, and what a library prints would end up in it.
    Characters that a stream's encoding lacks are written out instead of ending the program.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free one, which is this
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - until the end
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - until the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_line(stream: TextIO, line: str) -> None:
    """Write a line for whoever still reads; work goes on when nobody does."""
    try:
        stream.write(f"{escaped(line)}\n")
        stream.flush()
    except BrokenPipeError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Send everything that is still written to `stream` nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def reader_is_gone(stream: TextIO) -> bool:
    """Has whoever read from this pipe stopped?"""
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
