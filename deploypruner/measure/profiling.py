"""What a timing worker does to see inside an artifact: its latency without counters, and every operation's time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from deploypruner.errors import MeasureError
from deploypruner.runtime import Array, NodeTime, Profiler, Runtime, TurnProfiler, runtimes

_MIN_CALLS, _MAX_CALLS = 8, 1000


def can_profile(runtime: str) -> bool:
    """Does a runtime count the time of single operations?"""
    return issubclass(runtimes.get(runtime), Profiler)


def profile_file(
    runtime: Runtime,
    path: Path,
    feeds: Sequence[Array],
    *,
    threads: int,
    seconds: float,
    warm: Callable[[Callable[[], None]], Any],
    reference: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Time an artifact as a whole and by operation.

    Args:
        runtime: What executes it.
        path: The artifact.
        feeds: One array per input.
        threads: Threads of the runtime.
        seconds: For each of the two timings; 0 to learn the operations only.
        warm: Calls an inference until it is steady.
        reference: Another inference, called between those of the artifact.

    Returns:
        {"ns": [of single inferences without counters], "reference": [mean nanoseconds of the reference's calls before
        and after each, 1 without a reference], "nodes": [as `as_lists` makes]}.

    Raises:
        MeasureError: The runtime cannot time its operations.
        InputError: The artifact cannot be loaded or run.
    """
    if not isinstance(runtime, Profiler):
        raise MeasureError(
            f"{runtime.label} does not count the time of single operations", hint="use openvino or onnxruntime"
        )
    samples: list[int] = []
    beside: list[float] = []
    if seconds:
        session = runtime.open(path, threads=threads, shapes=[array.shape for array in feeds])
        infer = session.prepare(feeds)
        warm(infer)
        samples, beside = _side_by_side(infer, reference, seconds)
    nodes = runtime.profile(path, feeds, threads=threads, calls=len(samples))
    return {"ns": samples, "reference": beside, "nodes": as_lists(nodes)}


def _side_by_side(
    infer: Callable[[], None], reference: Callable[[], None] | None, seconds: float
) -> tuple[list[int], list[float]]:
    """Nanoseconds of calls within `seconds`, and of the reference's around each."""
    clock = time.perf_counter_ns
    samples: list[int] = []
    beside: list[float] = []

    def reference_ns() -> int:
        if reference is None:
            return 1
        start = clock()
        reference()
        return clock() - start

    reference_ns()
    end, before = clock() + int(seconds * 1e9), reference_ns()
    while len(samples) < _MIN_CALLS or (clock() < end and len(samples) < _MAX_CALLS):
        start = clock()
        infer()
        samples.append(clock() - start)
        after = reference_ns()
        beside.append((before + after) / 2)
        before = after
    return samples, beside


def count_side_by_side(
    runtime: Runtime, paths: Sequence[Path], feeds: Sequence[Array], *, threads: int, rounds: int, calls: int
) -> list[list[list[list[Any]]]]:
    """Time the operations of several artifacts in alternation.

    Args:
        runtime: What executes them, and has sessions that count.
        paths: The artifacts.
        feeds: One array per input of each.
        threads: Threads of the runtime.
        rounds: How often each takes its turn.
        calls: Inferences of one turn.

    Returns:
        For each round, the nodes of each artifact as `as_lists` makes them.

    Raises:
        MeasureError: The runtime cannot time its operations.
        InputError: An artifact cannot be loaded or run.
    """
    if not isinstance(runtime, TurnProfiler):
        raise MeasureError(f"{runtime.label} does not count in sessions that stay open", hint="use openvino")
    sessions = [runtime.counted(path, feeds, threads=threads) for path in paths]
    return [[as_lists(session.node_times(feeds, calls=calls)) for session in sessions] for _ in range(rounds)]


def as_lists(nodes: Sequence[NodeTime]) -> list[list[Any]]:
    """Nodes as JSON takes them."""
    return [[n.name, n.kind, [list(s) for s in n.shapes], n.precisions, n.ns, list(n.origins)] for n in nodes]


def from_lists(rows: Sequence[Sequence[Any]]) -> tuple[NodeTime, ...]:
    """What `as_lists` wrote."""
    return tuple(
        NodeTime(
            str(name),
            str(kind),
            tuple(tuple(map(int, shape)) for shape in shapes),
            str(precisions),
            float(ns),
            tuple(map(str, origins)),
        )
        for name, kind, shapes, precisions, ns, origins in rows
    )
