"""What runs beside the workers, on this machine or another: it starts them, passes messages on, and ends them.

Here it is `python -m deploypruner.device.agent`, elsewhere the archive that `archive` makes. It is told one JSON
object a line and says one a line, after a first one with the mark of `handshake`:

    {"do": "start", "worker", "threads", "environment", "command"} -> {"worker", "started": process id, 0 for none}
    {"do": "tell", "worker", "message", "patience_s"}   -> {"worker", "said"}: what the worker answered, or
                                                           {"worker", "late", "words"}: nothing in time, it was ended;
                                                           {"worker", "ended", "words"}: it crashed
    {"do": "round", "blocks": [as of "tell"]}           -> the same for each, one after another and never two at once,
                                                           then {"round": {"mhz", "after"}}: the frequency before it,
                                                           and the counters after it
    {"do": "stop", "worker"}                            -> {"worker", "stopped"}
    {"do": "counters"}, {"do": "environment"}, {"do": "details"}, {"do": "identity"},
    {"do": "cores", "threads", "among"},
    {"do": "have", "digest"}, {"do": "put", ...} with so many bytes behind the line, {"do": "drop", "digest"},
    {"do": "clean"}
                                                        -> {"told"}
    {"do": "alive", "silence_s"}                        -> nothing; from then on, so much silence ends everything

It ends, and every worker with it, when its input does: whoever measures is gone then. Python 3.9 and its own library
is all it needs.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from deploypruner.device.cores import own_cores, pick_cores
from deploypruner.device.counters import frequency_mhz, read_counters
from deploypruner.device.handshake import FORMAT, hello
from deploypruner.device.store import Store
from deploypruner.openmp import SPINNING

Message = dict[str, Any]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_CHUNK = 1 << 16
_EXIT_GRACE_S = 2.0
_LAST_BYTES = 4096
_HERE = (sys.executable, "-P", "-m", "deploypruner.measure.worker")


class WorkerProcess:
    """One worker: its process, and what it was asked and has not answered.

    Args:
        name: What the messages call it.
        command: What is started.
        environment: Of the process.
    """

    def __init__(self, name: int, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self.asked: deque[tuple[bytes, float]] = deque()
        self.deadline: float | None = None
        self.in_round = False
        self._unread = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (`close` closes it)
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=dict(environment)
        )

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def output(self) -> IO[bytes]:
        """Where its answers come from."""
        assert self._process.stdout is not None, "worker was started without a pipe from it"
        return self._process.stdout

    def send(self) -> None:
        """Send the oldest question, whose time begins now.

        Raises:
            BrokenPipeError: It is gone.
        """
        assert self._process.stdin is not None, "worker was started without a pipe to it"
        line, patience_s = self.asked[0]
        self.deadline = time.monotonic() + patience_s
        self._process.stdin.write(line)
        self._process.stdin.flush()

    def read(self) -> list[bytes] | None:
        """Lines that have come; None where there will be no more."""
        received = os.read(self.output.fileno(), _CHUNK)
        if not received:
            return None
        *lines, self._unread = (self._unread + received).split(b"\n")
        return lines

    def end(self, grace_s: float = 0.0) -> str:
        """End it, by closing its input and then by force; how it ended."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            code = self._process.wait(grace_s) if grace_s else self._process.poll()
        except subprocess.TimeoutExpired:
            code = None
        if code is None:
            self._process.kill()
            code = self._process.wait()
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def last_words(self) -> str:
        """The last line that it wrote to stderr, "" where there is none."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_BYTES))
        lines = [line.strip() for line in self._errors.read().decode("utf-8", "replace").splitlines()]
        return next(filter(None, reversed(lines)), "")

    def close(self) -> None:
        """Let go of its pipes."""
        self.output.close()
        self._errors.close()


class Agent:
    """Serves one stream of messages; see the module docstring.

    Args:
        folder: Where files are kept that come over the stream.
        command: What starts a worker.
        source: File descriptor of the messages.
        sink: File descriptor of the answers.
    """

    def __init__(self, folder: Path, command: Sequence[str], *, source: int, sink: int) -> None:
        self._store, self._command = Store(folder), tuple(command)
        self._source, self._sink = source, sink
        self._workers: dict[int, WorkerProcess] = {}
        self._ended: dict[int, str] = {}
        self._selector = selectors.DefaultSelector()
        self._unread = b""
        self._round: deque[Message] = deque()
        self._round_mhz: float | None = None
        self._silence_s: float | None = None
        self._heard = time.monotonic()

    def serve(self) -> None:
        """Answer until the input ends, or nobody is heard for too long; no worker is left then."""
        self._selector.register(self._source, selectors.EVENT_READ)
        try:
            while self._listen():
                self._end_late()
        finally:
            for name in list(self._workers):
                self._remove(name)
            self._selector.close()

    def _listen(self) -> bool:
        """Wait for whatever comes first; False where it is the end."""
        for key, _ in self._selector.select(self._wait_s()):
            if key.fileobj != self._source:
                self._hear(key.data)
                continue
            received = os.read(self._source, _CHUNK)
            if not received:
                return False
            self._heard = time.monotonic()
            self._take(received)
        return self._silence_s is None or time.monotonic() - self._heard < self._silence_s

    def _wait_s(self) -> float | None:
        ends = [worker.deadline for worker in self._workers.values() if worker.deadline is not None]
        if self._silence_s is not None:
            ends.append(self._heard + self._silence_s)
        return max(0.0, min(ends) - time.monotonic()) if ends else None

    def _take(self, received: bytes) -> None:
        """Messages, and between them the bytes of files."""
        self._unread += received
        while self._unread:
            if self._store.expects:
                some, self._unread = self._unread[: self._store.expects], self._unread[self._store.expects :]
                told = self._store.take(some)
                if told is not None:
                    self._say(told=told)
                continue
            line, newline, rest = self._unread.partition(b"\n")
            if not newline:
                return
            self._unread = rest
            self._serve_one(json.loads(line))

    def _serve_one(self, message: Message) -> None:
        do = message["do"]
        if do == "start":
            self._start(message)
        elif do == "tell":
            self._tell(message, in_round=False)
        elif do == "round":
            self._round.extend(message["blocks"])
            self._round_mhz = frequency_mhz()
            self._next_block()
        elif do == "stop":
            if message["worker"] in self._workers:
                self._remove(message["worker"], grace_s=_EXIT_GRACE_S)
            self._say(worker=message["worker"], stopped=True)
        elif do == "alive":
            self._silence_s = message["silence_s"]
        else:
            self._look(message)

    def _look(self, message: Message) -> None:
        """Whatever is answered at once."""
        do = message["do"]
        if do == "counters":
            self._say(told=self._counters())
        elif do == "cores":
            picked = pick_cores(message["threads"], message["among"])
            self._say(told={"picked": picked, "own": len(own_cores())})
        elif do in ("environment", "details", "identity"):
            from deploypruner.device import facts  # what takes a tenth of a second to load

            if do == "details":
                self._say(told=facts.details(self._store.folder))
            else:
                self._say(told=facts.environment() if do == "environment" else facts.identity())
        elif do == "have":
            self._say(told=self._store.has(message["digest"]))
        elif do == "put":
            told = self._store.expect(message)
            if told is not None:
                self._say(told=told)
        elif do == "drop":
            self._store.drop(message["digest"])
            self._say(told=True)
        elif do == "clean":
            self._say(told=self._store.clean())
        else:
            raise AssertionError(f"unknown message: {message}")

    def _start(self, message: Message) -> None:
        name = message["worker"]
        own = {key: value for key, value in os.environ.items() if (key, value) != SPINNING}
        environment = {**own, **dict.fromkeys(_THREAD_VARIABLES, str(message["threads"])), **message["environment"]}
        try:
            worker = WorkerProcess(name, message["command"] or self._command, environment)
        except OSError as error:
            self._ended[name] = f"it could not be started: {error.strerror}"
            self._say(worker=name, started=0)
            return
        self._workers[name] = worker
        self._selector.register(worker.output, selectors.EVENT_READ, name)
        self._say(worker=name, started=worker.pid)

    def _tell(self, message: Message, *, in_round: bool) -> None:
        name = message["worker"]
        worker = self._workers.get(name)
        if worker is None:
            self._say(worker=name, ended=self._ended.get(name, "it was stopped"), words="")
            if in_round:
                self._next_block()
            return
        worker.asked.append((json.dumps(message["message"]).encode() + b"\n", message["patience_s"]))
        worker.in_round = in_round
        if len(worker.asked) == 1:
            self._ask(worker)

    def _ask(self, worker: WorkerProcess) -> None:
        with suppress(BrokenPipeError):  # its output ends as well, and says how
            worker.send()

    def _next_block(self) -> None:
        if self._round:
            self._tell(self._round.popleft(), in_round=True)
        else:
            self._say(round={"mhz": self._round_mhz, "after": self._counters()})

    def _hear(self, name: int) -> None:
        worker = self._workers.get(name)
        if worker is None:  # it was ended a moment ago
            return
        lines = worker.read()
        if lines is None:
            self._give_up(worker, "ended", worker.end(_EXIT_GRACE_S))
            return
        for line in lines:
            if not worker.asked:  # a line that nobody asked for
                continue
            worker.asked.popleft()
            worker.deadline = None
            self._write(b'{"worker": %d, "said": %s}' % (name, line))
            if worker.asked:
                self._ask(worker)
            elif worker.in_round:
                worker.in_round = False
                self._next_block()

    def _end_late(self) -> None:
        now = time.monotonic()
        for worker in list(self._workers.values()):
            if worker.deadline is not None and now >= worker.deadline:
                worker.end()
                self._give_up(worker, "late", worker.asked[0][1])

    def _give_up(self, worker: WorkerProcess, how: str, about: Any) -> None:
        """Answer all that a worker was asked, and forget it."""
        words, in_round = worker.last_words(), worker.in_round
        answer = {"worker": worker.name, how: about, "words": words}
        self._ended[worker.name] = about if how == "ended" else "it was ended"
        for _ in worker.asked:
            self._say(**answer)
        self._remove(worker.name)
        if in_round:
            self._next_block()

    def _remove(self, name: int, grace_s: float = 0.0) -> None:
        worker = self._workers.pop(name)
        self._selector.unregister(worker.output)
        worker.end(grace_s)
        worker.close()

    def _counters(self) -> Message:
        return asdict(read_counters([worker.pid for worker in self._workers.values()]))

    def _say(self, **message: Any) -> None:
        self._write(json.dumps(message).encode())

    def _write(self, line: bytes) -> None:
        left = memoryview(line + b"\n")
        while left:
            left = left[os.write(self._sink, left) :]


def main(folder: Path, command: Sequence[str] = _HERE) -> None:
    """Serve the standard streams; whatever else is printed goes to stderr."""
    sink = os.dup(1)
    os.dup2(2, 1)
    agent = Agent(folder, command, source=0, sink=sink)
    with suppress(BrokenPipeError):  # whoever measures is gone
        os.write(sink, hello({"agent": FORMAT, "pid": os.getpid()}))
        agent.serve()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
