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

import time
from collections.abc import Callable
from pathlib import Path

import benchmarks.engine_runtimes  # noqa: F401  (they register themselves)
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.worker import Engine, Message, serve, timed_block, warm_up


class Holder:
    """What the worker holds between messages."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._infer: dict[str, Callable[[], None]] = {}

    def answer(self, message: Message) -> Message:
        found = self._engine.answer(message)
        if found is not None:
            return found
        match message["do"]:
            case "open":
                return self._open(message)
            case "warm":
                return warm_up(self._infer[message["name"]], max_s=message["max_s"], max_calls=message["max_calls"])
            case "block":
                return timed_block(self._infer[message["name"]], message["calls"])
            case "close":
                del self._infer[message["name"]]
                return {}
        raise AssertionError(f"unknown message: {message}")

    def _open(self, message: Message) -> Message:
        begin = time.perf_counter()
        session = self._engine.runtime.open(Path(message["path"]), threads=message["threads"])
        load_s = time.perf_counter() - begin
        self._infer[message["name"]] = session.prepare(random_feeds(session.inputs))
        return {"settings": session.settings, "load_s": load_s}


if __name__ == "__main__":
    serve(Holder().answer)
