"""Engines side by side: worker processes that each hold many files, timed in turns within one run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.device.cores import pick_cores
from deploypruner.errors import MeasureError
from deploypruner.measure.process import Worker
from deploypruner.measure.rounds import MeasuringEffort, block_calls, run_rounds
from deploypruner.records import Artifact

# Made by: python3.11 -m venv DIR && DIR/bin/pip install deepsparse==1.8.0 psutil scipy
DEEPSPARSE_PYTHON = Path(os.environ.get("DEEPSPARSE_PYTHON", "python3.11"))
_WARM_S, _WARM_CALLS = 0.3, 200
Samples = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class File:
    """A file that a worker has opened and warmed up; it can be timed.

    Args:
        worker: The process that holds it.
        name: What it is called there and in results.
        call_ns: Nanoseconds of one call, roughly.
        load_s: Seconds to load and compile it.
        settings: What the engine was told, and what it says of the file.
    """

    worker: Worker
    name: str
    call_ns: float
    load_s: float
    settings: Mapping[str, str]

    def block(self, calls: int) -> list[int]:
        """Nanoseconds of `calls` calls."""
        reply = self.worker.ask(do="block", name=self.name, calls=calls)
        self.worker.waited_ns = reply["waited_ns"]
        samples: list[int] = reply["ns"]
        return samples


@dataclass
class Engines:
    """Starts workers, which end with it.

    Args:
        folder: For what they print.
        threads: Of every engine; all are pinned to the same cores.
    """

    folder: Path
    threads: int = 1
    failures: dict[str, str] = field(default_factory=dict)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self._cores = pick_cores(self.threads)

    def __enter__(self) -> Engines:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, runtime: str, name: str = "") -> Worker:
        """A process that has loaded the library of a runtime."""
        python = DEEPSPARSE_PYTHON if runtime == "deepsparse" else Path(sys.executable)
        if not python.exists():
            raise MeasureError(f"no Python for {runtime} at '{python}'", hint="set DEEPSPARSE_PYTHON")
        self.folder.mkdir(parents=True, exist_ok=True)
        artifact = Artifact(name or runtime, self.folder, "onnx", "int8")
        command = (str(python), "-P", "-m", "benchmarks.engine_worker")
        worker = self._stack.enter_context(Worker(artifact, runtime, threads=self.threads, command=command))
        worker.ask(do="load", runtime=runtime)
        if self._cores:
            worker.ask(do="pin", cores=self._cores)
        return worker

    def open(self, worker: Worker, path: Path, name: str) -> File | None:
        """The file, warm; None where the engine cannot, and `failures` says why."""
        try:
            said = worker.ask(do="open", name=name, path=str(path), threads=self.threads)
            warm = worker.ask(do="warm", name=name, max_s=_WARM_S, max_calls=_WARM_CALLS)
        except MeasureError as error:
            self.failures[name] = error.message
            return None
        return File(worker, name, warm["call_ns"], said["load_s"], said["settings"])


def time_files(files: Sequence[File], *, rounds: int, seconds: float = 1.0, seed: int = 0) -> dict[str, Samples]:
    """Name -> [rounds, calls] nanoseconds; in each round every file has one block, in an order drawn anew.

    Args:
        files: Of any workers; the first is what the others are compared with.
        rounds: At least so many.
        seconds: At least for so long.
        seed: Of the order.
    """
    effort = MeasuringEffort(min_rounds=rounds, budget_s=max(seconds, 1e3), narrow=0.02)
    calls = block_calls([file.call_ns for file in files], effort)
    short = MeasuringEffort(min_rounds=rounds, budget_s=seconds, narrow=1e-6)
    found = run_rounds(files, calls, [0] * len(files), effort=short, seed=seed)
    return {file.name: samples for file, samples in zip(files, found.samples_ns, strict=True) if samples.size}


def ratio(samples: Samples, baseline: Samples) -> dict[str, Any]:
    """Speed-up with its interval, JSON-able."""
    from deploypruner.measure import paired_ratio

    value, interval = paired_ratio(samples, baseline)
    return {"ratio": value, "interval": list(interval)}
