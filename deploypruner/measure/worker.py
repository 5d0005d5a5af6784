"""A timing worker: `python -m deploypruner.measure.worker`, one process per artifact and runtime.

It reads one JSON object per line and answers each with one line:

    {"do": "load", "runtime"}                                 -> {"version"}
    {"do": "open", "path", "threads", "seed", "shapes", "feeds"} -> {"settings", "load_s"}; "others", see
                                                     `random_feeds`, may be left out
    {"do": "warm", "max_s", "max_calls"}                      -> {"calls", "call_ns"}
    {"do": "block", "calls"}                                  -> {"ns": [one integer per call], "waited_ns"}
    {"do": "memory"}                                          -> {"peak_rss_bytes"}
    {"do": "pin", "cores"}                                    -> {}
    {"do": "profile", "path", "threads", "feeds", "seconds"}  -> see `profiling.profile_file`;
                                                     what is open is the reference
    {"do": "count", "dense", "sparse", "threads", "feeds", "rounds", "calls"} -> {"rounds"}, see
                                                     `profiling.count_side_by_side`
    {"do": "kernels"}                                         -> {"targets", "active"}: of the sparse kernels

Any of them may say "kernels", a file of the library for sparse operations that was sent here.

A user's mistake is answered with {"error", "hint"}; anything else is a traceback on stderr and the end of
the process. It ends when its input does, and on Linux with the process that started it, in the middle of a call too.

Wherever models are measured it is this one; on a device it is part of an archive, so it and what it imports keep to
Python 3.9.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from deploypruner.device.handshake import AGENT
from deploypruner.errors import DeployPrunerError
from deploypruner.measure.inputs import random_feeds
from deploypruner.measure.profiling import count_side_by_side, profile_file
from deploypruner.reading import limit_memory
from deploypruner.runtime import Array, Runtime, Session, Shapes, runtimes
from deploypruner.sparse.library import active_target, take_from, targets

Message = dict[str, Any]

_WINDOW_CALLS = 5
_WINDOW_NS = 10_000_000
_STEADY = 0.02
_STEADY_WINDOWS = 3
_PROFILE_WARM_S = 0.1
_SET_PDEATHSIG = 1


class Engine:
    """A process with one runtime: what every kind of worker answers."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """The one that was loaded."""
        assert self._runtime is not None, "another message came before 'load'"
        return self._runtime

    def answer(self, message: Message) -> Message | None:
        """Serve "load", "pin" and "memory"; None for any other message."""
        do = message["do"]
        if do == "load":
            self._runtime = runtimes.get(message["runtime"])()
            return {"version": self._runtime.version()}
        if do == "pin":
            os.sched_setaffinity(0, message["cores"])
            return {}
        if do == "memory":
            return {"peak_rss_bytes": peak_rss_bytes()}
        return None


class WorkerState:
    """What a worker holds between messages; `answer` serves one."""

    def __init__(self) -> None:
        self._engine = Engine()
        self._infer: Callable[[], None] | None = None

    def answer(self, message: Message) -> Message:
        """Serve one message; the module docstring lists them."""
        if message.get("kernels"):
            take_from(Path(message["kernels"]).parent)
        found = self._engine.answer(message)
        if found is not None:
            return found
        do = message["do"]
        if do == "open":
            return self._open(message)
        if do == "warm":
            return warm_up(self._ready(), max_s=message["max_s"], max_calls=message["max_calls"])
        if do == "block":
            return timed_block(self._ready(), message["calls"])
        if do == "profile":
            return self._profile(message)
        if do == "count":
            feeds, paths = _read_feeds(Path(message["feeds"])), [Path(message[form]) for form in ("dense", "sparse")]
            more = {name: message[name] for name in ("threads", "rounds", "calls")}
            return {"rounds": count_side_by_side(self._engine.runtime, paths, feeds, **more)}
        if do == "kernels":
            return {"targets": targets(), "active": active_target()}
        raise AssertionError(f"unknown message: {message}")

    def _open(self, message: Message) -> Message:
        path, threads = Path(message["path"]), message["threads"]
        session, load_s = _timed_open(self._engine.runtime, path, threads=threads, shapes=None)
        feeds = (
            _read_feeds(Path(message["feeds"]))
            if message["feeds"]
            else random_feeds(
                session.inputs, shapes=message["shapes"], others=message.get("others", False), seed=message["seed"]
            )
        )
        if any(None in spec.shape for spec in session.inputs):
            shapes = [array.shape for array in feeds]
            session, load_s = _timed_open(self._engine.runtime, path, threads=threads, shapes=shapes)
        self._infer = session.prepare(feeds)
        fed = {
            f"fed {spec.name}": f"{'x'.join(map(str, array.shape))} {spec.dtype}"
            for spec, array in zip(session.inputs, feeds)
        }
        return {"settings": {**session.settings, **fed}, "load_s": load_s}

    def _profile(self, message: Message) -> Message:
        path, threads = Path(message["path"]), message["threads"]
        feeds = (
            _read_feeds(Path(message["feeds"]))
            if message["feeds"]
            else random_feeds(self._engine.runtime.open(path, threads=threads).inputs)
        )
        return profile_file(
            self._engine.runtime,
            path,
            feeds,
            threads=threads,
            seconds=message["seconds"],
            warm=lambda infer: warm_up(infer, max_s=_PROFILE_WARM_S, max_calls=_WINDOW_CALLS * 20),
            reference=self._infer,
        )

    def _ready(self) -> Callable[[], None]:
        assert self._infer is not None, "no artifact is open"
        return self._infer


def _timed_open(runtime: Runtime, path: Path, *, threads: int, shapes: Shapes | None) -> tuple[Session, float]:
    """Open an artifact, compiled for `shapes` as a deployment at batch 1 would; also the seconds it took."""
    start = time.perf_counter()
    session = runtime.open(path, threads=threads, shapes=shapes)
    return session, time.perf_counter() - start


def timed_block(infer: Callable[[], None], calls: int) -> Message:
    """Nanoseconds of `calls` calls, and how long other programs had this process's cores meanwhile."""
    before = waited_ns()
    samples = block(infer, calls)
    after = waited_ns()
    return {"ns": samples, "waited_ns": None if before is None or after is None else after - before}


def block(infer: Callable[[], None], calls: int) -> list[int]:
    """Return nanoseconds of `calls` calls, one after another, without garbage collection.

    One more call is made first and thrown away: it pays for the caches another worker has filled.
    """
    clock = time.perf_counter_ns
    samples = [0] * calls
    gc.collect()
    gc.disable()
    try:
        infer()
        for index in range(calls):
            start = clock()
            infer()
            samples[index] = clock() - start
    finally:
        gc.enable()
    return samples


def warm_up(infer: Callable[[], None], *, max_s: float, max_calls: int) -> Message:
    """Call until the median of a window stops falling, or a bound is met.

    A window lasts at least 10 ms and 5 calls. It counts as steady when its median is not more than 2 %
    below the lowest so far; three steady windows in a row end the warm-up.
    """
    begin = time.perf_counter()
    calls, steady, lowest, median = 0, 0, float("inf"), 0.0
    while steady < _STEADY_WINDOWS and calls < max_calls and time.perf_counter() - begin < max_s:
        window: list[int] = []
        while len(window) < _WINDOW_CALLS or sum(window) < _WINDOW_NS:
            start = time.perf_counter_ns()
            infer()
            window.append(time.perf_counter_ns() - start)
            calls += 1
            if calls >= max_calls or time.perf_counter() - begin >= max_s:
                break
        median = statistics.median(window)
        steady = steady + 1 if median > lowest * (1 - _STEADY) else 0
        lowest = min(lowest, median)
    return {"calls": calls, "call_ns": median}


def waited_ns() -> int | None:
    """Nanoseconds that threads of this process were ready to run while another program had their core.

    None where the kernel does not count it (it is the second number of schedstat).
    """
    waited = 0
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            waited += int(path.read_text().split()[1])
        except OSError:  # the thread has ended
            continue
    return waited or None


def peak_rss_bytes() -> int:
    """Peak resident memory of this process.

    Linux keeps VmHWM per program. `ru_maxrss` is only the fallback: there it survives exec, so a child
    of a large parent would report the parent's peak.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _read_feeds(path: Path) -> list[Array]:
    with np.load(path, allow_pickle=False) as archive:
        return [archive[f"arr_{index}"] for index in range(len(archive.files))]


def _claim_stdout() -> TextIO:
    """Return the protocol's stream and send everything else that is printed, native code too, to stderr."""
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return replies


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that started it: it may be in native code for minutes."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGKILL)
    agent = os.environ.get(AGENT)
    if agent and os.getppid() != int(agent):  # it was gone before the kernel was asked
        os._exit(1)


def serve(answer: Callable[[Message], Message]) -> None:
    """Answer messages until the input ends."""
    _end_with_parent()
    replies = _claim_stdout()
    limit_memory()
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except DeployPrunerError as error:
            reply = {"error": error.message, "hint": error.hint}
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] == "deploypruner":
                raise
            reply = {
                "error": f"{sys.executable} has no module '{error.name}'",
                "hint": f"{sys.executable} -m pip install {error.name}",
            }
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    serve(WorkerState().answer)
