"""A device, reached: the agent there, its workers, its files and its counters."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from deploypruner.atomic import file_sha256
from deploypruner.device.counters import Reading
from deploypruner.device.handshake import FORMAT, first_words
from deploypruner.device.transports import Transport
from deploypruner.device.transports.local import LocalTransport
from deploypruner.errors import DeviceError, InputError
from deploypruner.scratch import scratch

_HELLO_S = 60.0
# Beyond what the agent waits for its workers: a message may be on its way for so long.
_ANSWER_S = 60.0
_ALIVE_S, _SILENCE_S = 10.0, 60.0
_CHUNK = 1 << 16
_MOST_FOREIGN_BYTES = 1 << 16
_EXIT_GRACE_S = 5.0


class Device:
    """The machine that measures; a context manager that leaves no process there.

    Attributes:
        bytes_sent: Of files, since the connection was opened.

    Args:
        transport: How it is reached; this machine where None.
    """

    def __init__(self, transport: Transport | None = None) -> None:
        self.transport = transport or LocalTransport()
        self.bytes_sent = 0
        self._stack = ExitStack()
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._unread = b""
        self._workers: dict[int, deque[dict[str, Any]]] = {}
        self._pids: dict[int, int] = {}
        self._told: deque[Any] = deque()
        self._rounds: list[dict[str, Any]] = []
        self._rounds_asked = 0
        self._reading: Reading | None = None
        self._placed: dict[Path, str] = {}

    def __enter__(self) -> Device:
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            self._log = folder / "log"
            with self._log.open("wb") as log:
                self._process = self.transport.start(log)
            stack.callback(self._end)
            self._stdin, self._stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
            said = self.transport.greet(self)
            if said.get("agent") != FORMAT:
                raise DeviceError(
                    f"{self.transport.name}: the agent there speaks another version ({said.get('agent')})",
                    hint="`deploypruner target clean` it, and run this again",
                )
            if self.transport.silent_when_cut:
                self._tell(do="alive", silence_s=_SILENCE_S)
                thread = threading.Thread(target=self._keep_alive, daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(self._stop.set)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    # ------------------------------------------------------------------ the machine

    def environment(self) -> dict[str, Any]:
        """What `facts.environment` says there."""
        found: dict[str, Any] = self._ask(do="environment")
        return found

    def details(self) -> dict[str, Any]:
        """What `facts.details` says there."""
        found: dict[str, Any] = self._ask(do="details")
        return found

    def pick_cores(self, threads: int) -> tuple[list[int], int]:
        """What `cores.pick_cores` picks there, of those that the target names; and how many cores there are."""
        found = self._ask(do="cores", threads=threads, among=list(self.transport.cores))
        return found["picked"], found["own"]

    def round_trip_s(self) -> float:
        """Seconds that a question which takes no work was on its way, there and back."""
        begin = time.monotonic()
        self._ask(do="have", digest="")
        return time.monotonic() - begin

    def reading(self) -> Reading:
        """Counters of the machine, as of the end of the last round, or now where there was none."""
        if self._reading is None:
            self._reading = Reading(**self._ask(do="counters"))
        return self._reading

    def take_rounds(self) -> list[dict[str, Any]]:
        """What is known of the rounds since this was asked last: {"mhz": before it, "after": counters}."""
        deadline = time.monotonic() + _ANSWER_S
        while len(self._rounds) < self._rounds_asked:
            self._receive(deadline)
        found, self._rounds, self._rounds_asked = self._rounds, [], 0
        return found

    # ------------------------------------------------------------------ files

    def place(self, path: Path, beside: Sequence[Path] = ()) -> str:
        """Where a file is there; it is sent, with those it needs beside it, unless the same was sent before.

        Args:
            path: The file here.
            beside: Files in its folder, or below it, that it refers to.

        Raises:
            InputError: One cannot be read.
            DeviceError: There is no room for it.
        """
        if self.transport.shares_files:
            return str(path)
        if path not in self._placed:
            self._placed[path] = self._send_files(path, beside)
        return self._placed[path]

    def in_words_of_here(self, text: str) -> str:
        """What was said there, with the files' names here."""
        for path, there in self._placed.items():
            text = text.replace(there, str(path))
        return text

    def clean(self) -> int:
        """Delete what is kept there; bytes that it had.

        Raises:
            DeviceError: Some of it stays.
        """
        told = self._ask(do="clean")
        if told["why"]:
            raise DeviceError(f"{self.transport.name}: not everything could be deleted: {told['why']}")
        return int(told["bytes"])

    def _send_files(self, path: Path, beside: Sequence[Path]) -> str:
        try:
            files = {os.path.relpath(file, path.parent): file for file in (path, *beside)}
            sums = {name: file_sha256(file) for name, file in files.items()}
            digest = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
            there = self._ask(do="have", digest=digest)
            if there is None:
                for name, file in files.items():
                    self._send_file(file, name=name, digest=digest, sha256=sums[name], last=name == [*files][-1])
                there = self._ask(do="have", digest=digest)
        except OSError as error:
            raise InputError(f"cannot read '{error.filename or path}': {error.strerror}") from error
        return f"{there}/{path.name}"

    def _send_file(self, file: Path, **about: Any) -> None:
        size = file.stat().st_size
        with file.open("rb") as source, self._writing:
            # One lock over both: nothing else may come between a line and its bytes.
            self._write(json.dumps({"do": "put", "bytes": size, **about}).encode() + b"\n")
            left = size
            while left:
                some = source.read(min(left, _CHUNK))
                if not some:
                    raise InputError(f"'{file}' became shorter while it was sent", hint="run it again")
                left -= len(some)
                self._write(some)
        self.bytes_sent += size
        why = self._told_next()["why"]
        if why:
            raise self.transport.no_room(why, f"'{file}' ({size} bytes)")

    # ------------------------------------------------------------------ workers

    def start_worker(self, *, threads: int, environment: Mapping[str, str], command: Sequence[str] | None) -> int:
        """Start a worker; its number.

        Args:
            threads: Of every numeric library in it.
            environment: Variables beside those of the agent.
            command: What is started; the worker of `measure` where None.
        """
        name = len(self._workers)
        self._workers[name] = deque()
        self._tell(do="start", worker=name, threads=threads, environment=dict(environment), command=command)
        return name

    def pid_of(self, worker: int) -> int:
        """Process id of a worker, there; 0 of one that could not be started."""
        deadline = time.monotonic() + _ANSWER_S
        while worker not in self._pids:
            self._receive(deadline)
        return self._pids[worker]

    def tell_worker(self, worker: int, message: Mapping[str, Any], patience_s: float) -> None:
        """Send one message; `hear_worker` has the answer."""
        self._tell(do="tell", worker=worker, message=message, patience_s=patience_s)

    def tell_round(self, blocks: Sequence[tuple[int, Mapping[str, Any], float]]) -> None:
        """Send a message to each of several workers; they are answered one after another, with no network between."""
        listed = [{"worker": worker, "message": message, "patience_s": s} for worker, message, s in blocks]
        self._tell(do="round", blocks=listed)
        self._rounds_asked += 1

    def hear_worker(self, worker: int, patience_s: float) -> dict[str, Any]:
        """The answer to the oldest message of a worker: {"said"}, {"late", "words"} or {"ended", "words"}."""
        waiting = self._workers[worker]
        deadline = time.monotonic() + patience_s + _ANSWER_S
        while not waiting:
            self._receive(deadline)
        return waiting.popleft()

    def stop_worker(self, worker: int) -> None:
        """End a worker."""
        self._tell(do="stop", worker=worker)
        deadline = time.monotonic() + _ANSWER_S
        while not any("stopped" in said for said in self._workers[worker]):
            self._receive(deadline)
        self._workers[worker].clear()

    # ------------------------------------------------------------------ the stream

    def first_words(self) -> dict[str, Any]:
        """The next line with our mark; what others print before it is skipped.

        Raises:
            DeviceError: The stream ends first, or holds something else and no end; says what was there instead.
        """
        foreign, deadline = b"", time.monotonic() + _HELLO_S
        while len(foreign) < _MOST_FOREIGN_BYTES:
            line = self._line(deadline, foreign)
            said = first_words(line)
            if said is not None:
                return said
            foreign += line + b"\n"
        raise self.transport.no_agent(None, self._said_there(), foreign.decode("utf-8", "replace"))

    def send(self, some: bytes) -> None:
        """Write bytes to the stream.

        Raises:
            DeviceError: The connection is lost.
        """
        with self._writing:
            self._write(some)

    def send_file(self, some: bytes) -> None:
        """Write bytes that count as sent.

        Raises:
            DeviceError: As `send`.
        """
        self.send(some)
        self.bytes_sent += len(some)

    def _ask(self, **message: Any) -> Any:
        self._tell(**message)
        return self._told_next()

    def _tell(self, **message: Any) -> None:
        self.send(json.dumps(message).encode() + b"\n")

    def _told_next(self) -> Any:
        deadline = time.monotonic() + _ANSWER_S
        while not self._told:
            self._receive(deadline)
        return self._told.popleft()

    def _receive(self, deadline: float) -> None:
        """Sort one line in."""
        line = self._line(deadline)
        try:
            message = json.loads(line)
        except ValueError:
            raise DeviceError(
                f"{self.transport.name}: something there wrote into the protocol: {line[:80]!r}",
                hint="nothing but the agent may print to the connection",
            ) from None
        if "started" in message:
            self._pids[message["worker"]] = message["started"]
        elif "worker" in message:
            self._workers[message.pop("worker")].append(message)
        elif "round" in message:
            self._reading = Reading(**message["round"]["after"])
            self._rounds.append(message["round"])
        else:
            self._told.append(message["told"])

    def _line(self, deadline: float, foreign: bytes = b"") -> bytes:
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self.transport.no_answer(self._said_there())
                received = os.read(self._stdout.fileno(), _CHUNK)
                if not received:
                    raise self._lost(foreign + self._unread)
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _write(self, some: bytes) -> None:
        try:
            self._stdin.write(some)
            self._stdin.flush()
        except BrokenPipeError:
            raise self._lost(b"") from None

    def _lost(self, foreign: bytes) -> DeviceError:
        try:
            code: int | None = self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            code = None
        return self.transport.no_agent(code, self._said_there(), foreign.decode("utf-8", "replace"))

    def _said_there(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _keep_alive(self) -> None:
        while not self._stop.wait(_ALIVE_S):
            try:
                self._tell(do="alive", silence_s=_SILENCE_S)
            except DeviceError:  # whoever waits for an answer says so
                return

    def _end(self) -> None:
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None, "the agent was started without pipes"
    return stream
