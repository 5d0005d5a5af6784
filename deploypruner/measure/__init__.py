"""Latency that can be trusted: raw samples, interleaved rounds, paired intervals, a noise floor.

A timing worker imports this package, so it stays free of torch and of every runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploypruner.device.facts import environment
from deploypruner.device.reach import HERE
from deploypruner.measure.baselines import Job
from deploypruner.measure.bench import Bench, bench, openers, pair_up
from deploypruner.measure.failure import Failure, as_error
from deploypruner.measure.files import describe_file, detect_precision, read_timing, write_timing
from deploypruner.measure.interference import Conditions
from deploypruner.measure.protocol import DECIDING_SECONDS, Measured, time_artifacts
from deploypruner.measure.quality import Batch, evaluate, outputs
from deploypruner.measure.rounds import Progress
from deploypruner.measure.rows import make_rows
from deploypruner.measure.statistics import (
    compare,
    median_ms,
    noise_floor,
    paired_ratio,
    quantile_ms,
    upper_bound_ms,
)
from deploypruner.measure.warnings import find_doubts, find_warnings
from deploypruner.records import Row
from deploypruner.runtime import Array

PathLike = str | Path


def measure(
    paths: PathLike | Sequence[PathLike],
    runtime: str | Sequence[str] = "openvino",
    threads: int = 1,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    feeds: Sequence[Array] | None = None,
    budget_s: float = 12.0,
    seed: int = 0,
    progress: Progress | None = None,
    target: str = HERE,
) -> list[Row]:
    """Time artifacts side by side; the first file is what the others are compared with.

    `bench` returns the same rows with raw samples, warnings and environment, and goes on without what fails.

    Args:
        paths: Files: .onnx, .xml or .pt2.
        runtime: Name of a runtime, or several; each file is timed on those that open its kind.
        threads: Number of threads of every runtime, 1 to 1024.
        input_shapes: Full shapes by input name, for dynamic dimensions; a batch that is not named is 1.
        feeds: Arrays, one per declared input in its shape and dtype, for every file; random ones where None.
        budget_s: Seconds of measuring, loading and warm-up not counted.
        seed: Number that decides random inputs, order and bootstrap, 0 to 4294967295.
        progress: Listener that is told after every round: fraction of the budget, one line of text.
        target: Machine to measure on: "cpu" (here), "ssh://user@host" or a name in targets.toml.

    Raises:
        InputError: No file, or one that none of the runtimes can open.
        DeviceError: The machine cannot be reached, lacks something, or was lost.
        RecipeError: No such runtime, or a number out of range.
        MeasureError: A file that could not be loaded or run; the message says why.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    found = bench(
        [Path(file) for file in files],
        runtimes=[runtime] if isinstance(runtime, str) else list(runtime),
        threads=threads,
        budget_s=budget_s,
        seed=seed,
        feeds=feeds,
        input_shapes=input_shapes,
        progress=progress,
        target=target,
    )
    if found.measured.failures:
        raise as_error(found.measured.failures)
    return list(found.rows)


__all__ = [
    "DECIDING_SECONDS",
    "Batch",
    "Bench",
    "Conditions",
    "Failure",
    "Job",
    "Measured",
    "Progress",
    "bench",
    "compare",
    "describe_file",
    "detect_precision",
    "environment",
    "evaluate",
    "find_doubts",
    "find_warnings",
    "make_rows",
    "measure",
    "median_ms",
    "noise_floor",
    "openers",
    "outputs",
    "pair_up",
    "paired_ratio",
    "quantile_ms",
    "read_timing",
    "time_artifacts",
    "upper_bound_ms",
    "write_timing",
]
