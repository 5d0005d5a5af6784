"""A timing worker of the benchmarks: `python -m benchmarks.engine_worker`, one process an engine, many files in it.

It speaks as `deploypruner.measure.worker` does, one JSON object a line, in lock-step, so that engines in processes
and interpreters of their own take turns within one run; files have names here:

    {"do": "load", "runtime"}                  -> {"version"}
    {"do": "pin", "cores"}                     -> {}
    {"do": "open", "name", "path", "threads"}  -> {"settings", "load_s"}
    {"do": "warm", "name", "max_s", "max_calls"} -> {"calls", "call_ns"}
    {"do": "block", "name", "calls"}           -> {"ns": [one integer per call], "waited_ns"}
    {"do": "close", "name"}                    -> {}
    {"do": "memory"}                           -> {"peak_rss_bytes"}
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import benchmarks.engine_runtimes  # noqa: F401  (they register themselves)
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.worker import Message, block, peak_rss_bytes, serve, waited_ns, warm_up
from deploypruner.runtime import Runtime, runtimes


class Holder:
    """What the worker holds between messages."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._infer: dict[str, Callable[[], None]] = {}

    def answer(self, message: Message) -> Message:
        match message["do"]:
            case "load":
                self._runtime = runtimes.get(message["runtime"])()
                return {"version": self._runtime.version()}
            case "pin":
                os.sched_setaffinity(0, message["cores"])
                return {}
            case "open":
                return self._open(message)
            case "warm":
                return warm_up(self._infer[message["name"]], max_s=message["max_s"], max_calls=message["max_calls"])
            case "block":
                before = waited_ns() or 0
                samples = block(self._infer[message["name"]], message["calls"])
                return {"ns": samples, "waited_ns": (waited_ns() or 0) - before}
            case "close":
                del self._infer[message["name"]]
                return {}
            case "memory":
                return {"peak_rss_bytes": peak_rss_bytes()}
        raise AssertionError(f"unknown message: {message}")

    def _open(self, message: Message) -> Message:
        assert self._runtime is not None, "'open' came before 'load'"
        begin = time.perf_counter()
        session = self._runtime.open(Path(message["path"]), threads=message["threads"])
        load_s = time.perf_counter() - begin
        self._infer[message["name"]] = session.prepare(random_feeds(session.inputs))
        return {"settings": session.settings, "load_s": load_s}


if __name__ == "__main__":
    serve(Holder().answer)
