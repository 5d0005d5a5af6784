"""The same model timed here and over ssh in one run, round by round: do the two ways measure the same?

    python -m benchmarks.through_ssh --seconds 30

An sshd of its own is started on the loopback address, with its own keys in a temporary folder, and ended afterwards:
the machine is the same, so whatever differs is the way. Rounds alternate between the two agents, two workers of the
one file each; ratios are paired by round, as everywhere.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np

from deploypruner.device.connection import Device
from deploypruner.device.described import described
from deploypruner.device.reach import reach
from deploypruner.measure import describe_file, environment, paired_ratio
from deploypruner.measure.process import Worker
from deploypruner.measure.rounds import MeasuringEffort, block_calls
from tests.sshd import WHY_NOT, running_sshd
from tests.timed import save_conv

_RESULTS = Path(__file__).parent / "results"
_WARM = {"max_s": 1.0, "max_calls": 2000}


def opened(stack: ExitStack, device: Device, path: Path, core: int) -> Worker:
    """A warm worker of the file, on one core."""
    worker = stack.enter_context(Worker(describe_file(path), "openvino", threads=1, device=device))
    worker.ask(do="load", runtime="openvino")
    worker.ask(do="pin", cores=[core])
    worker.ask(do="open", path=device.place(path), threads=1, seed=0, shapes={}, feeds=None)
    worker.warm_up(max_s=_WARM["max_s"], max_calls=int(_WARM["max_calls"]))
    return worker


def alternate(path: Path, seconds: float, core: int) -> dict[str, Any]:
    """Medians, ratios and overheads of the two ways, as JSON-able values."""
    with ExitStack() as stack:
        first, sent = _sent(path)
        here, there = stack.enter_context(Device()), stack.enter_context(reach(described("loopback")))
        ways = {"here": here, "ssh": there}
        workers = {f"{way} {i}": opened(stack, device, path, core) for i in (1, 2) for way, device in ways.items()}
        call_ns = float(np.median([worker._call_ns for worker in workers.values()]))
        calls = block_calls([call_ns], MeasuringEffort())[0]
        samples: dict[str, list[list[int]]] = {name: [] for name in workers}
        extra: dict[str, list[float]] = {way: [] for way in ways}
        rng, end = np.random.default_rng(0), time.monotonic() + seconds
        while time.monotonic() < end:
            for way in map(str, rng.permutation(list(ways))):
                names = [f"{way} {i}" for i in map(int, rng.permutation([1, 2]))]
                begin = time.perf_counter()
                ways[way].tell_round([workers[name].block_message(calls) for name in names])
                for name in names:
                    samples[name].append(workers[name].block(calls))
                ways[way].take_rounds()
                spent = time.perf_counter() - begin
                extra[way].append(spent - sum(sum(samples[name][-1]) for name in names) / 1e9)
    arrays = {name: np.array(rows, dtype=np.int64) for name, rows in samples.items()}
    pairs = {"ssh 1 / here 1": ("ssh 1", "here 1"), "A/A here": ("here 2", "here 1"), "A/A ssh": ("ssh 2", "ssh 1")}
    return {
        "rounds": len(samples["here 1"]),
        "calls": calls,
        "median_ms": {name: float(np.median(array)) / 1e6 for name, array in arrays.items()},
        # Of times: above 1 is slower than the second of the pair.
        "ratio_of_times": {name: _inverse(arrays[one], arrays[two]) for name, (one, two) in pairs.items()},
        # Each block makes one more call, which is not among its samples.
        "round_beyond_samples_ms": {way: 1e3 * float(np.median(values)) for way, values in extra.items()},
        "sent_bytes": {"first": first, "second": sent},
        "environment": environment(),
    }


def _sent(path: Path) -> tuple[int, int]:
    counts = []
    for _ in range(2):
        with reach(described("loopback")) as device:
            device.place(path)
        counts.append(device.bytes_sent)
    return counts[0], counts[1]


def _inverse(samples: np.ndarray, baseline: np.ndarray) -> dict[str, Any]:
    ratio, (low, high) = paired_ratio(samples, baseline)
    return {"ratio": 1 / ratio, "interval": [1 / high, 1 / low]}


@click.command()
@click.option("--seconds", default=30.0, show_default=True, help="Of rounds.")
@click.option("--model", type=click.Path(path_type=Path), help="An ONNX file.  [default: a convolution]")
@click.option("--core", type=int, help="That every worker runs on.  [default: the last]")
def main(seconds: float, model: Path | None, core: int | None) -> None:
    """Time a file here and over ssh in turns."""
    if WHY_NOT:
        raise SystemExit(WHY_NOT)
    with tempfile.TemporaryDirectory() as name, running_sshd(Path(name)) as server:
        os.environ.update(server.environment)
        server.targets(server.described("loopback"))
        path = model or save_conv(Path(name) / "conv.onnx", 64)
        found = alternate(path, seconds, max(os.sched_getaffinity(0)) if core is None else core)
    found["model"] = path.name
    _RESULTS.mkdir(exist_ok=True)
    (_RESULTS / "through_ssh.zen4.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "environment"}, indent=1))


if __name__ == "__main__":
    main()
