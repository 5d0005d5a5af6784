"""Latency that can be trusted: raw samples, interleaved rounds, paired intervals, a noise floor.

A timing worker imports this package, so it stays free of torch and of every runtime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from deploypruner.errors import InputError
from deploypruner.measure.baselines import Job
from deploypruner.measure.environment import environment
from deploypruner.measure.files import describe_file, detect_precision, read_timing, write_timing
from deploypruner.measure.protocol import Measured, time_artifacts
from deploypruner.measure.quality import Batch, evaluate, outputs
from deploypruner.measure.rounds import Progress
from deploypruner.measure.rows import make_rows
from deploypruner.measure.statistics import compare, median_ms, noise_floor, paired_ratio, quantile_ms
from deploypruner.measure.warnings import find_warnings
from deploypruner.records import Row
from deploypruner.runtime import Array, runtimes

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
) -> list[Row]:
    """Time artifacts side by side, batch 1; the first file is what the others are compared with.

    Args:
        paths: .onnx or .xml files.
        runtime: Registered runtime name, or several; each file is timed on those that open its kind.
        threads: Threads of every runtime.
        input_shapes: Full shapes by input name, for dynamic dimensions; an unnamed one is 1.
        feeds: One array per input, for every file; random ones where None.
        budget_s: Seconds of measuring, loading and warm-up not counted.
        seed: Seed of random inputs, order and bootstrap.
        progress: Told after every round: fraction of the budget, one line of text.

    Raises:
        InputError: No file, or one that none of the runtimes can open.
        RecipeError: No such runtime, or a number out of range.
        MeasureError: A file that could not be loaded or run; the message says why.
    """
    files = [paths] if isinstance(paths, (str, Path)) else list(paths)
    names = [runtime] if isinstance(runtime, str) else list(runtime)
    measured = time_artifacts(
        pair_up([Path(file) for file in files], names),
        threads=threads,
        budget_s=budget_s,
        seed=seed,
        feeds=feeds,
        input_shapes=input_shapes,
        progress=progress,
    )
    return make_rows(measured.timings, [None] * len(measured.timings), floor=measured.floor, seed=seed)


def pair_up(paths: Sequence[Path], names: Sequence[str]) -> list[Job]:
    """Return every pair of a file and a runtime that opens its kind, runtimes together.

    Raises:
        InputError: A file that is missing or that none of the runtimes opens.
        RecipeError: No such runtime.
    """
    artifacts = [describe_file(path) for path in paths]
    opens = {name: runtimes.get(name).suffixes for name in names}
    for path in paths:
        if not any(path.suffix in suffixes for suffixes in opens.values()):
            raise InputError(f"{', '.join(names)} cannot open '{path}'", hint="choose another --runtime")
    return [(artifact, name) for name in names for artifact in artifacts if artifact.path.suffix in opens[name]]


__all__ = [
    "Batch",
    "Job",
    "Measured",
    "Progress",
    "compare",
    "describe_file",
    "detect_precision",
    "environment",
    "evaluate",
    "find_warnings",
    "make_rows",
    "measure",
    "median_ms",
    "noise_floor",
    "outputs",
    "pair_up",
    "paired_ratio",
    "quantile_ms",
    "read_timing",
    "time_artifacts",
    "write_timing",
]
