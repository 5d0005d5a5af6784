"""How far a long job is: a live line on a terminal, few plain lines elsewhere, nothing where nobody wants it."""

from __future__ import annotations

import os
import re
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, TextIO, runtime_checkable

from deploypruner.errors import DeployPrunerError
from deploypruner.logbook import Logbook
from deploypruner.terminal import escaped, write_line

# Seconds between two looks of the live line, and between two lines in a pipe.
_LIVE, _PLAIN = 0.5, 30.0
_SPINNER = "|/-\\"
_ERASE = "\r\x1b[K"
# What a long line goes on under the end of: the name and time of a stage, or the kind of a remark.
_HEAD = re.compile(r"\w+ +(?:[\d.]+ s|\(done before\))  |(?:warning|remark): ")


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


@runtime_checkable
class StageProgress(Progress, Protocol):
    """A listener that is told about the stages of a build, too, each of which may have jobs of its own."""

    def stage(self, number: int, total: int, name: str) -> None:
        """Begin stage `number` of `total`; it ends where the next one begins."""


class SilentProgress:
    """Shows nothing; what functions use when they are given no progress."""

    def start(self, total: int, label: str) -> None:
        """Ignore the job."""

    def advance(self, n: int = 1, text: str = "") -> None:
        """Ignore the steps."""

    def close(self) -> None:
        """Do nothing."""


@contextmanager
def percent(progress: Progress, label: str) -> Iterator[Callable[[float, str], None]]:
    """Yield what takes a fraction, 0 to 1, and a text, and passes it on as a job of 100 steps.

    Args:
        progress: Told about the steps.
        label: Of the job.
    """
    shown = 0

    def told(fraction: float, text: str) -> None:
        nonlocal shown
        del text  # of every round; none is a milestone
        now = min(100, int(100 * fraction))
        progress.advance(now - shown)
        shown = now

    progress.start(100, label)
    try:
        yield told
    finally:
        progress.close()


class Console:
    """What somebody who waits sees.

    A terminal has one live line, drawn again twice a second by a thread of its own: stage n of N, what it does, steps
    that are done, time that is gone and time that is left. Elsewhere that line is printed every 30 s. Lines of the
    work itself stand above it. Used as a context it is there from the first to the last line; without, as long as a
    job takes.

    Args:
        stream: Where it is shown.
        live: Can the stream draw a line again?
        verbose: Are milestones and details printed, too?
        quiet: Is nothing shown at all?
        log: Told every line, shown or not.
        clock: Seconds; a test may pass its own.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        live: bool,
        verbose: bool = False,
        quiet: bool = False,
        log: Logbook | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._live, self._verbose, self.quiet = stream, live and not quiet, verbose, quiet
        self.log, self._clock = log or Logbook(), clock
        self._lock, self._stop, self._depth = threading.RLock(), threading.Event(), 0
        self._thread: threading.Thread | None = None
        self._where, self._label, self._text = "", "", ""
        self._done, self._total, self._looks = 0, 0, 0
        self._since = self._begun = self._last = clock()

    def __enter__(self) -> Console:
        self._depth += 1
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if error is not None:
            self.log(_told(error))
        if not self._depth:
            self._end()
            self.log.close()

    def stage(self, number: int, total: int, name: str) -> None:
        """Say which stage this is."""
        self.doing(f"stage {number} of {total}, {name}")

    def doing(self, what: str) -> None:
        """Say what is done from now on, in the live line alone."""
        self.log(what)
        self._do(what)

    def step(self, line: str) -> None:
        """Say what is done from now on, on a line of its own, too."""
        self.say(line)
        self._do(line)

    def start(self, total: int, label: str) -> None:
        """Begin to count."""
        self._begin(label, total)

    def advance(self, n: int = 1, text: str = "") -> None:
        """Count; a text is shown until the next one."""
        with self._lock:
            self._done += n
            self._text = text or self._text
        if text:
            self._tell(f"{self._label}: {text}" if self._label else text, shown=self._verbose)

    def close(self) -> None:
        """End the job; the stage goes on."""
        self._begin("", 0)
        if not self._depth:
            self._end()

    def say(self, line: str) -> None:
        """Print a line."""
        self._tell(line, shown=True)

    def detail(self, line: str) -> None:
        """Show a line until the next one, and print it where details are wanted; a remark is printed anyway."""
        with self._lock:
            self._text = line
        self._tell(line, shown=self._verbose or line.startswith("remark: "))

    def aside(self, say: Callable[[str], None]) -> Callable[[str], None]:
        """The same, logged and with the live line out of its way: for what prints by itself."""

        def told(line: str) -> None:
            self.log(line)
            with self._lock:
                self._erase()
                say(line)

        return told

    def _do(self, what: str) -> None:
        with self._lock:
            self._where, self._since = what, self._clock()
        self._begin("", 0)

    def _begin(self, label: str, total: int) -> None:
        with self._lock:
            self._label, self._total = label, total
            self._done, self._text, self._begun = 0, "", self._clock()
        self._draw()

    def _tell(self, line: str, *, shown: bool) -> None:
        self.log(line)
        if shown and not self.quiet:
            with self._lock:
                self._erase()
                for part in folded(line, _columns(self._stream)) if self._live else (line,):
                    write_line(self._stream, part)
                self._last = self._clock()

    def _draw(self) -> None:
        """Have a thread that looks after the line; none where nothing is to be seen."""
        if self._thread is None and not self.quiet:
            self._stop.clear()
            self._thread = threading.Thread(target=self._look, name="progress", daemon=True)
            self._thread.start()

    def _look(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self.look()
            self._stop.wait(_LIVE)

    def look(self) -> None:
        """Draw the line, where it is time for it."""
        now = self._clock()
        if self._live:
            self._looks += 1
            line = f"{_SPINNER[self._looks % len(_SPINNER)]} {self.line(now)}"[: _columns(self._stream) - 1]
            self._write(f"\r{line}\x1b[K")
        elif (self._where or self._label) and now - self._last >= _PLAIN:
            self._last = now
            write_line(self._stream, self.line(now))

    def line(self, now: float) -> str:
        """ "stage 6 of 15, recover: 120/500, 0:45, 1:20 left; epoch 2 of 5"."""
        gone = now - (self._begun if self._label else self._since)
        stage = self._where.rpartition(", ")[2]
        job = f"{self._label} " if self._label and self._label != stage and self._where else ""
        where = self._where or self._label or "starting"
        done = f"{self._done}/{self._total}, " if self._total else ""
        left = gone / self._done * (self._total - self._done) if 0 < self._done <= self._total else 0.0
        text = f"; {self._text}" if self._text else ""
        return escaped(f"{where}: {job}{done}{_minutes(gone)}{f', {_minutes(left)} left' if left else ''}{text}")

    def _erase(self) -> None:
        if self._live:
            self._write(_ERASE)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # nobody is there any more
            self._stop.set()

    def _end(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        with self._lock:
            self._erase()


def _told(error: BaseException) -> str:
    """What ended the work; where it is a surprise, from where."""
    if isinstance(error, DeployPrunerError):
        return f"error: {error}"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    return "".join(traceback.format_exception(error))


def folded(line: str, columns: int) -> list[str]:
    """A line in parts that fit a terminal: broken between words, and indented to where its text begins."""
    head = _HEAD.match(line)
    indent = " " * (head.end() if head is not None and 2 * head.end() < columns else 2)
    if len(line) < columns:
        return [line]
    return textwrap.wrap(line, columns - 1, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _minutes(seconds: float) -> str:
    """75 -> "1:15"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def redraws(stream: TextIO) -> bool:
    """Is it a terminal that can draw a line again?"""
    return stream.isatty() and os.environ.get("TERM", "") != "dumb"


def progress_for(stream: TextIO | None = None) -> Console:
    """A live line where `stream` (stderr when None) is a terminal that can redraw it, plain lines otherwise."""
    stream = sys.stderr if stream is None else stream
    return Console(stream, live=redraws(stream))


@contextmanager
def logged(progress: Progress | None, say: Callable[[str], None]) -> Iterator[tuple[Logbook, Callable[[str], None]]]:
    """A log for the time of a command, and `say` that adds to it; a console has its own, and adds to it by itself."""
    if isinstance(progress, Console):
        yield progress.log, say
        return
    log = Logbook()

    def both(line: str) -> None:
        log(line)
        say(line)

    try:
        yield log, both
    except BaseException as error:
        log(_told(error))
        raise
    finally:
        log.close()


@contextmanager
def shown(progress: Progress | bool, say: Callable[[str], None]) -> Iterator[tuple[Progress, Callable[[str], None]]]:
    """Yield who is told how far a job is, and what to call with lines of it.

    Args:
        progress: Whoever is told; True for what `progress_for` gives, which is there while the block runs.
        say: Called with a line; the live line makes room for what it prints.
    """
    if not isinstance(progress, bool):
        yield progress, say
    elif not progress:
        yield SilentProgress(), say
    else:
        with progress_for() as console:
            yield console, console.aside(say)
