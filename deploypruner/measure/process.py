"""The parent's handle on one timing worker: start, ask, and be sure that it ends."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploypruner.errors import MeasureError
from deploypruner.openmp import SPINNING
from deploypruner.records import Artifact

# Seconds a worker may take for each kind of message. Compiling a large model takes a minute on a small machine, and
# importing torch half of one on a busy machine; what is not listed may take as long as the longest.
REPLY_TIMEOUTS_S = {"load": 120.0, "pin": 20.0, "open": 300.0, "warm": 120.0, "block": 60.0, "memory": 20.0}
# A block may take this many times what its calls took in the warm-up.
_BLOCK_PATIENCE = 20
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_PACKAGE_ROOT = Path(__file__).parents[2]
_EXIT_GRACE_S = 2.0
_COMMAND = (sys.executable, "-P", "-m", "deploypruner.measure.worker")


class Worker:
    """One worker process, for one artifact on one runtime; a context manager that always ends it.

    `waited_ns` is what the last block waited for its core, None where the system does not say.

    Args:
        artifact: What it will time.
        runtime: Registered runtime name.
        threads: Threads for the runtime and for every numeric library in the process.
        log: File for what the process writes to stderr; its last line goes into error messages.
        command: What is started; a benchmark has workers of other interpreters, with engines of their own.
    """

    def __init__(
        self, artifact: Artifact, runtime: str, *, threads: int, log: Path, command: Sequence[str] = _COMMAND
    ) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self.waited_ns: int | None = None
        self._unread = b""
        self._asked: deque[tuple[str, float]] = deque()
        self._call_ns = 0.0
        self._log = log
        with log.open("wb") as errors:
            # A process group of its own: Ctrl-C reaches the parent only, which then ends its workers.
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(threads) | dict(artifact.environment),
                process_group=0,
            )
        assert self._process.stdin is not None, "worker was started without a pipe to it"
        assert self._process.stdout is not None, "worker was started without a pipe from it"
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def tell(self, **message: Any) -> None:
        """Send one message without waiting; `hear` returns the answer.

        Raises:
            MeasureError: The worker is gone.
        """
        self._asked.append((str(message["do"]), self._patience(message)))
        try:
            self._stdin.write(json.dumps(message).encode() + b"\n")
            self._stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self) -> dict[str, Any]:
        """Wait for the answer to the oldest unanswered message.

        Raises:
            MeasureError: The worker reports a mistake, crashed, or does not answer in time.
        """
        reply: dict[str, Any] = json.loads(self._line(*self._asked.popleft()))
        if "error" in reply:
            raise MeasureError(f"{self._subject()}: {reply['error']}", hint=reply["hint"])
        return reply

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send one message and wait for its answer.

        Raises:
            MeasureError: As `tell` and `hear`.
        """
        self.tell(**message)
        return self.hear()

    def block(self, calls: int) -> list[int]:
        """Return nanoseconds of `calls` inferences.

        Raises:
            MeasureError: As `ask`.
        """
        reply = self.ask(do="block", calls=calls)
        self.waited_ns = reply["waited_ns"]
        samples: list[int] = reply["ns"]
        return samples

    def warm_up(self, *, max_s: float, max_calls: int) -> dict[str, Any]:
        """Call until it is warm; return calls and nanoseconds of one.

        Raises:
            MeasureError: As `ask`.
        """
        reply = self.ask(do="warm", max_s=max_s, max_calls=max_calls)
        self._call_ns = reply["call_ns"]
        return reply

    def close(self) -> None:
        """End the process: by closing its input, then by force. Safe to call twice."""
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        try:
            self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stdout.close()

    def _patience(self, message: Mapping[str, Any]) -> float:
        seconds = REPLY_TIMEOUTS_S.get(message["do"], max(REPLY_TIMEOUTS_S.values()))
        return max(seconds, _BLOCK_PATIENCE * self._call_ns * message.get("calls", 0) / 1e9)

    def _line(self, doing: str, patience_s: float) -> bytes:
        deadline = time.monotonic() + patience_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdout, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    self._process.kill()
                    raise MeasureError(
                        f"{self._subject()}: no answer to '{doing}' in {patience_s:g} s{self._last_words()}",
                        hint="try another runtime, or one thread",
                    )
                received = os.read(self._stdout.fileno(), 1 << 16)
                if not received:
                    raise self._gone()
                self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _gone(self) -> MeasureError:
        try:
            code = self._process.wait(_EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return MeasureError(
            f"{self._subject()}: the worker process ended ({how}){self._last_words()}",
            hint="run it on another runtime to see whether the file or the runtime is at fault",
        )

    def _subject(self) -> str:
        return f"cannot measure '{self.artifact.name}' on {self.runtime}"

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return f"; its last words: {lines[-1].strip()}" if lines else ""


def _environment(threads: int) -> dict[str, str]:
    search = [str(_PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {name: value for name, value in os.environ.items() if (name, value) != SPINNING}
    return own | dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"PYTHONPATH": os.pathsep.join(search)}
