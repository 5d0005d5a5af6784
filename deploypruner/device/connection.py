"""A device, reached: the agent there, its workers, files and counters, and how a lost connection is taken up."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from deploypruner.atomic import file_sha256
from deploypruner.device.counters import Reading
from deploypruner.device.stream import AgentStream
from deploypruner.device.transports import Transport
from deploypruner.device.transports.local import LocalTransport
from deploypruner.errors import DeviceError, DeviceLostError, InputError

T = TypeVar("T")

# Beyond what the agent waits for its workers: a message may be on its way for so long.
_ANSWER_S = 60.0
RETRY_S = (0.5, 2.0, 5.0, 10.0, 15.0, 20.0, 30.0, 30.0, 30.0, 30.0)
"""Seconds before each try to reach a device again: together as long as a small machine takes to start anew."""

MOST_LOSSES = 3
"""How often one thing may be begun anew: what takes the connection down each time is not worth a fourth try."""


class Device:
    """The machine that measures; a context manager that leaves no process there.

    Attributes:
        connections: How often it was reached: whatever ran there is gone where this went up.

    Args:
        transport: How it is reached; this machine where None.
        say: Called with a line where the connection is lost, and where it is back.
    """

    def __init__(self, transport: Transport | None = None, *, say: Callable[[str], None] = lambda line: None) -> None:
        self.transport = transport or LocalTransport()
        self.say = say
        self.connections = 0
        self._sent_before = 0
        self._stream: AgentStream | None = None
        self._placed: dict[Path, str] = {}
        self._numbers = 0
        self._forget()

    def __enter__(self) -> Device:
        self._connect()
        return self

    def __exit__(self, *_: object) -> None:
        self._disconnect()

    @property
    def bytes_sent(self) -> int:
        """Of files, since the first connection was opened."""
        return self._sent_before + (0 if self._stream is None else self._stream.bytes_sent)

    # ------------------------------------------------------------------ losing it

    def reconnect(self, lost: DeviceLostError) -> None:
        """Reach the device again, after more and more time; says so.

        Args:
            lost: How the connection went.

        Raises:
            DeviceError: It stays away; how it was lost, and how long it was waited for. What is no matter of time,
                such as another host key, ends this at once.
        """
        self.say(f"{lost.message}; trying again")
        self._disconnect()
        begun, last = time.monotonic(), lost
        for wait_s in RETRY_S:
            time.sleep(wait_s)
            try:
                self._connect()
            except DeviceLostError as error:
                last = error
                self.say(f"{error.message}; trying again")
            else:
                self.say(f"{self.transport.name} is back after {time.monotonic() - begun:.0f} s")
                return
        raise DeviceError(
            f"{last.message} ({len(RETRY_S)} tries in {time.monotonic() - begun:.0f} s)", hint=last.hint
        ) from lost

    def lasting(self, act: Callable[[], T], again: Callable[[], None] = lambda: None) -> T:
        """Do it, and once more from its beginning where the connection is lost on the way.

        Args:
            act: What is done.
            again: Before that, makes what ran there run again.

        Raises:
            DeviceError: The device stays away, or is lost at every try.
        """
        losses = 0
        while True:
            connection = self.connections
            try:
                if losses:
                    again()
                return act()
            except DeviceLostError as error:
                losses += 1
                if losses > MOST_LOSSES:
                    raise
                if self.connections == connection:  # else something inside has connected it again
                    self.reconnect(error)

    def _connect(self) -> None:
        self._forget()
        self._stream = AgentStream(self.transport)
        self.connections += 1

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._sent_before = self.bytes_sent
            stream, self._stream = self._stream, None
            stream.close()

    def _forget(self) -> None:
        """What was true of one connection."""
        self._workers: dict[int, deque[dict[str, Any]]] = {}
        self._pids: dict[int, int] = {}
        self._told: deque[Any] = deque()
        self._rounds: list[dict[str, Any]] = []
        self._rounds_asked = 0
        self._reading: Reading | None = None

    # ------------------------------------------------------------------ the machine

    def environment(self) -> dict[str, Any]:
        """What `facts.environment` says there."""
        found: dict[str, Any] = self.lasting(lambda: self._ask(do="environment"))
        return found

    def details(self) -> dict[str, Any]:
        """What `facts.details` says there."""
        found: dict[str, Any] = self.lasting(lambda: self._ask(do="details"))
        return found

    def identity(self) -> dict[str, Any]:
        """What `facts.identity` says there."""
        found: dict[str, Any] = self.lasting(lambda: self._ask(do="identity"))
        return found

    def pick_cores(self, threads: int) -> tuple[list[int], int]:
        """What `cores.pick_cores` picks there, of those that the target names; and how many cores there are."""
        among = list(self.transport.cores)
        found = self.lasting(lambda: self._ask(do="cores", threads=threads, among=among))
        return found["picked"], found["own"]

    def round_trip_s(self) -> float:
        """Seconds that a question which takes no work was on its way, there and back."""
        begin = time.monotonic()
        self._ask(do="have", digest="")
        return time.monotonic() - begin

    def reading(self) -> Reading:
        """Counters of the machine, as of the end of the last round, or now where there was none."""
        if self._reading is None:
            self._reading = Reading(**self.lasting(lambda: self._ask(do="counters")))
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
        self._placed[path] = self.lasting(lambda: self._send_files(path, beside))
        return self._placed[path]

    def drop(self, path: Path) -> None:
        """Delete what `place` sent last for a file, which no worker needs any more."""
        there = self._placed.pop(path, None)
        if there is not None:
            self.lasting(lambda: self._ask(do="drop", digest=there.rsplit("/", 2)[1]))

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
        with file.open("rb") as source:
            if self.stream.put(source, size, about):
                raise InputError(f"'{file}' became shorter while it was sent", hint="run it again")
        why = self._told_next()["why"]
        if why:
            raise self.transport.no_room(why, f"'{file}' ({size} bytes)")

    # ------------------------------------------------------------------ workers

    def start_worker(self, *, threads: int, environment: Mapping[str, str], command: Sequence[str] | None) -> int:
        """Start a worker; its number, which no other one gets.

        Args:
            threads: Of every numeric library in it.
            environment: Variables beside those of the agent.
            command: What is started; the worker of `measure` where None.

        Raises:
            DeviceLostError: The connection is lost; so do the others that follow.
        """
        name, self._numbers = self._numbers, self._numbers + 1
        self._workers[name] = deque()
        self.stream.tell(
            {"do": "start", "worker": name, "threads": threads, "environment": dict(environment), "command": command}
        )
        return name

    def pid_of(self, worker: int) -> int:
        """Process id of a worker, there; 0 of one that could not be started."""
        deadline = time.monotonic() + _ANSWER_S
        while worker not in self._pids:
            self._receive(deadline)
        return self._pids[worker]

    def tell_worker(self, worker: int, message: Mapping[str, Any], patience_s: float) -> None:
        """Send one message; `hear_worker` has the answer."""
        self.stream.tell({"do": "tell", "worker": worker, "message": message, "patience_s": patience_s})

    def tell_round(self, blocks: Sequence[tuple[int, Mapping[str, Any], float]]) -> None:
        """Send a message to each of several workers; they are answered one after another, with no network between."""
        listed = [{"worker": worker, "message": message, "patience_s": s} for worker, message, s in blocks]
        self.stream.tell({"do": "round", "blocks": listed})
        self._rounds_asked += 1

    def hear_worker(self, worker: int, patience_s: float) -> dict[str, Any]:
        """The answer to the oldest message of a worker: {"said"}, {"late", "words"} or {"ended", "words"}."""
        if worker not in self._workers:
            raise DeviceLostError(f"{self.transport.name}: the connection was lost, and a worker with it")
        waiting = self._workers[worker]
        deadline = time.monotonic() + patience_s + _ANSWER_S
        while not waiting:
            self._receive(deadline)
        return waiting.popleft()

    def stop_worker(self, worker: int) -> None:
        """End a worker; one of a connection that was lost has ended with it."""
        if worker not in self._workers:
            return
        self.stream.tell({"do": "stop", "worker": worker})
        deadline = time.monotonic() + _ANSWER_S
        while not any("stopped" in said for said in self._workers[worker]):
            self._receive(deadline)
        self._workers[worker].clear()

    # ------------------------------------------------------------------ the stream

    @property
    def stream(self) -> AgentStream:
        """The connection.

        Raises:
            DeviceError: There is none.
        """
        if self._stream is None:
            raise DeviceError(f"{self.transport.name} is not connected", hint="run it again once it is there")
        return self._stream

    def _ask(self, **message: Any) -> Any:
        self.stream.tell(message)
        return self._told_next()

    def _told_next(self) -> Any:
        deadline = time.monotonic() + _ANSWER_S
        while not self._told:
            self._receive(deadline)
        return self._told.popleft()

    def _receive(self, deadline: float) -> None:
        """Sort one line in."""
        line = self.stream.line(deadline)
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
