"""One connection to an agent: a process whose pipes end there, and lines that go to and fro."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import IO, Any

from deploypruner.device.handshake import FORMAT, first_words
from deploypruner.device.transports import Transport
from deploypruner.errors import DeviceError
from deploypruner.scratch import scratch

_HELLO_S = 60.0
_ALIVE_S, _SILENCE_S = 10.0, 60.0
_ALIVE = {"do": "alive", "silence_s": _SILENCE_S}
_CHUNK = 1 << 16
_MOST_FOREIGN_BYTES = 1 << 16
_EXIT_GRACE_S = 5.0


class AgentStream:
    """A connection that is open; `close` leaves no process of ours, and the agent there ends itself.

    Attributes:
        bytes_sent: Of files.

    Args:
        transport: How the agent is reached.

    Raises:
        DeviceError: It cannot be; the message says why.
    """

    def __init__(self, transport: Transport) -> None:
        self.bytes_sent = 0
        self._transport = transport
        self._stop, self._writing = threading.Event(), threading.Lock()
        self._unread = b""
        with ExitStack() as stack:
            folder = stack.enter_context(scratch())
            self._log = folder / "log"
            with self._log.open("wb") as log:
                self._process = transport.start(log)
            stack.callback(self._end)
            self._stdin, self._stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
            said = transport.greet(self)
            if said.get("agent") != FORMAT:
                raise DeviceError(
                    f"{transport.name}: the agent there speaks another version ({said.get('agent')})",
                    hint="`deploypruner target clean` it, and run this again",
                )
            if transport.silent_when_cut:
                self.tell(_ALIVE)
                thread = threading.Thread(target=self._keep_alive, daemon=True)
                thread.start()
                stack.callback(thread.join)
                stack.callback(self._stop.set)
            self._stack = stack.pop_all()

    def close(self) -> None:
        """End it."""
        self._stack.close()

    def tell(self, message: Mapping[str, Any]) -> None:
        """Send one message.

        Raises:
            DeviceError: The connection is lost.
        """
        self.send(json.dumps(message).encode() + b"\n")

    def send(self, some: bytes) -> None:
        """Write bytes.

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

    def put(self, source: IO[bytes], size: int, about: Mapping[str, Any]) -> int:
        """Send so many bytes of a file behind a line about it; how many it lacked.

        Raises:
            DeviceError: As `send`.
        """
        # One lock over both: nothing else may come between a line and its bytes.
        with self._writing:
            self._write(json.dumps({"do": "put", "bytes": size, **about}).encode() + b"\n")
            left = size
            while left:
                some = source.read(min(left, _CHUNK))
                if not some:
                    return left
                left -= len(some)
                self._write(some)
        self.bytes_sent += size
        return 0

    def first_words(self) -> dict[str, Any]:
        """The next line with our mark; what others print before it is skipped.

        Raises:
            DeviceError: The stream ends first, or holds something else and no end; says what was there instead.
        """
        foreign, deadline = b"", time.monotonic() + _HELLO_S
        while len(foreign) < _MOST_FOREIGN_BYTES:
            line = self.line(deadline, foreign)
            said = first_words(line)
            if said is not None:
                return said
            foreign += line + b"\n"
        raise self._transport.no_agent(None, self._said_there(), foreign.decode("utf-8", "replace"))

    def line(self, deadline: float, foreign: bytes = b"") -> bytes:
        """The next line.

        Args:
            deadline: Of this process's monotonic clock.
            foreign: What came before it and was not ours.

        Raises:
            DeviceError: None came in time, or the stream ended.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._transport.no_answer(self._said_there())
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
        return self._transport.no_agent(code, self._said_there(), foreign.decode("utf-8", "replace"))

    def _said_there(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _keep_alive(self) -> None:
        while not self._stop.wait(_ALIVE_S):
            try:
                self.tell(_ALIVE)
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
