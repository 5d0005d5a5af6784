"""Why times of two threads fall into two heaps: a probe of each core before and after every inference.

    python -m benchmarks.two_threads --net resnet50 --seconds 60

The probe is a small dense convolution of our kernels, all of it in the first-level cache, on every core at once, each
core's thread pinned there. A core whose probe takes a fifth longer than the best one shares its execution units with
somebody else: on a virtual machine another guest on the same physical core, which nothing inside can see or change.
"""

from __future__ import annotations

import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from benchmarks.sparse_models import Variant, prepare
from deploypruner.measure import environment
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse.arrays import Bytes, aligned, c4_shape
from deploypruner.sparse.bindings import Conv, ConvShape

RESULTS = Path(__file__).parent / "results" / "two_threads.json"
_SLOW = 1.2
_CHANNELS, _SIZE, _CALLS = 64, 8, 8

Results = dict[str, Any]


class Probe:
    """One small convolution, pinned to a core."""

    def __init__(self, core: int) -> None:
        self._pool = ThreadPoolExecutor(
            1, initializer=lambda: os.sched_setaffinity(threading.get_native_id(), {core})
        )
        shape = ConvShape(_CHANNELS, _CHANNELS, _SIZE, _SIZE)
        weights = np.ones((_CHANNELS, _CHANNELS, 1, 1), np.int8)
        scale, bias = np.full(_CHANNELS, 1e-3, np.float32), np.zeros(_CHANNELS, np.int32)
        self._conv = Conv(shape, weights, scale, bias)
        self._x, self._y = (aligned(c4_shape(1, _CHANNELS, _SIZE * _SIZE)) for _ in range(2))
        self._x[:] = 1

    def start(self) -> Any:
        """A future of the fastest of a few calls, microseconds."""
        return self._pool.submit(lambda: min(_timed(self._conv, self._x, self._y) for _ in range(_CALLS)))


def _timed(conv: Conv, x: Bytes, y: Bytes) -> float:
    begin = time.perf_counter()
    conv(x, out=y)
    return (time.perf_counter() - begin) * 1e6


def measure(net: str, *, threads: int, seconds: float) -> Results:
    """Inferences of the dense and of the sparse model in turns, each with the slowest core's probe around it."""
    files = {"dense": Variant(net), "1x4 90 %": Variant(net, "1x4", 0.9, threads=threads)}
    kinds = {"dense": "openvino", "1x4 90 %": "sparse"}
    for name, variant in files.items():
        prepare(variant, (kinds[name],))
    x = np.random.default_rng(0).normal(size=files["dense"].shape).astype(np.float32)
    opened = {name: OpenVino().open(variant.file(kinds[name]), threads=threads) for name, variant in files.items()}
    calls = {name: session.prepare([x]) for name, session in opened.items()}
    probes = [Probe(core) for core in sorted(os.sched_getaffinity(0))[:threads]]

    def slowest() -> float:
        return max(future.result() for future in [probe.start() for probe in probes])

    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in files}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for name, call in calls.items():
            call()
            before, begin = slowest(), time.perf_counter()
            call()
            ms = (time.perf_counter() - begin) * 1e3
            taken[name].append((max(before, slowest()), ms))
    best = min(probe for pairs in taken.values() for probe, _ in pairs)
    rows = {name: _heaps(pairs, best) for name, pairs in taken.items()}
    return {"net": net, "threads": threads, "best_probe_us": best, "rows": rows}


def _heaps(pairs: list[tuple[float, float]], best: float) -> Results:
    heaps: dict[str, list[float]] = {"undisturbed": [], "disturbed": []}
    for probe, ms in pairs:
        heaps["disturbed" if probe > _SLOW * best else "undisturbed"].append(ms)
    return {
        name: {"share": len(ms) / len(pairs), "median_ms": median(ms), "p10_ms": float(np.quantile(ms, 0.1)),
               "p90_ms": float(np.quantile(ms, 0.9))}
        for name, ms in heaps.items() if ms
    }  # fmt: skip


def table(found: Results) -> str:
    """Markdown."""
    lines = ["| | cores by their probe | share | ms, median [10 %, 90 %] |", "|---|---|--:|--:|"]
    for run in found["runs"]:
        for name, heaps in run["rows"].items():
            for heap, row in heaps.items():
                label = f"{run['net']} {name}, {run['threads']} threads"
                times = f"{row['median_ms']:.2f} [{row['p10_ms']:.2f}, {row['p90_ms']:.2f}]"
                lines.append(f"| {label} | {heap} | {row['share']:.0%} | {times} |")
    return "\n".join(lines)


@click.command()
@click.option("--net", default="resnet50", show_default=True)
@click.option("--threads", multiple=True, default=(1, 2), show_default=True)
@click.option("--seconds", default=60.0, show_default=True, help="For each number of threads.")
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
def main(net: str, threads: tuple[int, ...], seconds: float, out: Path) -> None:
    """Measure and print the table."""
    runs = [measure(net, threads=count, seconds=seconds) for count in threads]
    found = {"environment": environment(), "runs": runs}
    out.write_text(json.dumps(found, indent=1) + "\n")
    click.echo(table(found))


if __name__ == "__main__":
    main()
