"""The parent's handle on one timing worker: start, ask, and be sure that it ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from deploypruner.device.connection import Device
from deploypruner.errors import DeviceError, MeasureError
from deploypruner.measure.files import needed_beside
from deploypruner.records import Artifact

# Seconds a worker may take for each kind of message. Compiling a large model takes a minute on a small machine, and
# importing torch half of one on a busy machine; what is not listed may take as long as the longest.
REPLY_TIMEOUTS_S = {"load": 120.0, "pin": 20.0, "open": 300.0, "warm": 120.0, "block": 60.0, "memory": 20.0}
# A block may take this many times what its calls took in the warm-up.
_BLOCK_PATIENCE = 20
# What a worker has to be told again where it is started anew, in this order.
_MAKES_READY = ("load", "pin", "open", "warm")


class Worker:
    """One worker process, for one artifact on one runtime; a context manager that always ends it.

    `waited_ns` is what the last block waited for its core, None where the system does not say.

    Args:
        artifact: What it will time.
        runtime: Registered runtime name.
        threads: Threads for the runtime and for every numeric library in the process.
        device: Where it runs; this machine, over a connection of its own, where None.
        command: What is started; a benchmark has workers of other interpreters, with engines of their own.
    """

    def __init__(
        self,
        artifact: Artifact,
        runtime: str,
        *,
        threads: int,
        device: Device | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.artifact = artifact
        self.runtime = runtime
        self.waited_ns: int | None = None
        self._asked: deque[tuple[str, float]] = deque()
        self._call_ns = 0.0
        self._ahead = 0
        self._closed = False
        self._made_ready: list[dict[str, Any]] = []
        self._stack = ExitStack()
        self._device = device or self._stack.enter_context(Device())
        self._start = partial(
            self._device.start_worker, threads=threads, environment=dict(artifact.environment), command=command
        )
        self._number = self._start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id, on the machine it runs on."""
        return self._device.pid_of(self._number)

    def tell(self, **message: Any) -> None:
        """Send one message without waiting; `hear` returns the answer. Of a `Path` the file is sent before.

        Raises:
            DeviceError: The machine it runs on is lost, or has no room for a file.
        """
        if message["do"] in _MAKES_READY:
            self._made_ready = [m for m in self._made_ready if m["do"] != message["do"]] + [message]
        self._tell(message)

    def revive(self) -> None:
        """Start it anew on a device that was lost, and bring it to where it was; nothing is asked of it then.

        Raises:
            MeasureError: As `hear`.
            DeviceError: As `tell`.
        """
        self._asked.clear()
        self._ahead, self._number = 0, self._start()
        for message in self._made_ready:
            self._tell(message)
            self.hear()

    def _tell(self, message: Mapping[str, Any]) -> None:
        there = {
            key: self._device.place(value, needed_beside(value)) if isinstance(value, Path) else value
            for key, value in message.items()
        }
        patience_s = self._patience(message)
        self._asked.append((str(message["do"]), patience_s))
        self._device.tell_worker(self._number, there, patience_s)

    def hear(self) -> dict[str, Any]:
        """Wait for the answer to the oldest unanswered message.

        Raises:
            MeasureError: The worker reports a mistake, crashed, or does not answer in time.
            DeviceError: The machine it runs on is lost.
        """
        doing, patience_s = self._asked.popleft()
        heard = self._device.hear_worker(self._number, patience_s)
        last = f"; its last words: {heard['words']}" if heard.get("words") else ""
        if "late" in heard:
            raise MeasureError(
                f"{self._subject()}: no answer to '{doing}' in {patience_s:g} s{last}",
                hint="try another runtime, or one thread",
            )
        if "ended" in heard:
            raise MeasureError(
                f"{self._subject()}: the worker process ended ({heard['ended']}){last}",
                hint="run it on another runtime to see whether the file or the runtime is at fault",
            )
        reply: dict[str, Any] = heard["said"]
        if "error" in reply:
            said = self._device.in_words_of_here(reply["error"])
            raise MeasureError(f"{self._subject()}: {said}", hint=self._device.in_words_of_here(reply["hint"]))
        return reply

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send one message and wait for its answer.

        Raises:
            MeasureError: As `hear`.
            DeviceError: As `hear`.
        """
        self.tell(**message)
        return self.hear()

    def block_message(self, calls: int) -> tuple[int, Mapping[str, Any], float]:
        """What `Device.tell_round` takes for a block of `calls` inferences; `block` then has its answer."""
        message = {"do": "block", "calls": calls}
        patience_s = self._patience(message)
        self._asked.append(("block", patience_s))
        self._ahead += 1
        return self._number, message, patience_s

    def block(self, calls: int) -> list[int]:
        """Return nanoseconds of `calls` inferences.

        Raises:
            MeasureError: As `hear`.
            DeviceError: As `hear`.
        """
        if self._ahead:
            self._ahead -= 1
        else:
            self.tell(do="block", calls=calls)
        reply = self.hear()
        self.waited_ns = reply["waited_ns"]
        samples: list[int] = reply["ns"]
        return samples

    def warm_up(self, *, max_s: float, max_calls: int) -> dict[str, Any]:
        """Call until it is warm; return calls and nanoseconds of one.

        Raises:
            MeasureError: As `ask`.
            DeviceError: As `hear`.
        """
        reply = self.ask(do="warm", max_s=max_s, max_calls=max_calls)
        self._call_ns = reply["call_ns"]
        return reply

    def close(self) -> None:
        """End the process: by closing its input, then by force. Safe to call twice."""
        if self._closed:
            return
        self._closed = True
        with suppress(DeviceError):  # which took its workers with it
            self._device.stop_worker(self._number)
        self._stack.close()

    def _patience(self, message: Mapping[str, Any]) -> float:
        seconds = REPLY_TIMEOUTS_S.get(message["do"], max(REPLY_TIMEOUTS_S.values()))
        return max(seconds, _BLOCK_PATIENCE * self._call_ns * message.get("calls", 0) / 1e9)

    def _subject(self) -> str:
        return f"cannot measure '{self.artifact.name}' on {self.runtime}"
