"""Mixes of int8 and float: what is asked for, what is found, and the files and times of candidates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from deploypruner.latency.clock import Clock, current_clock
from deploypruner.latency.layer_times import LayerRun, Owners
from deploypruner.measure import DECIDING_SECONDS
from deploypruner.onnx_graph import read_graph
from deploypruner.progress import Progress, SilentProgress
from deploypruner.quantize.calibrate import Feeds
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.static import Calibrated, write_qdq
from deploypruner.records import Artifact, Comparison, Environment, Setting, Timing
from deploypruner.runtime import Array
from deploypruner.search.gaps import Gap
from deploypruner.search.precision import LayerCosts, border_ms

_SECONDS_EACH = 0.15


@dataclass(frozen=True)
class MixRequest:
    """What is to be mixed, and what counts.

    Args:
        fp32: The float file.
        int8: The all-int8 file.
        calibrated: The float model with its ranges, for every placement.
        folder: For candidates.
        timed: Runtimes that count the time of operations; none where no time is to be looked at.
        judged: Runtime that accuracy is judged in.
        lost: Points that a file loses against the user's model, None where nobody can say.
        allowed: Points that may be lost.
        classes: Numbers of the outputs that are scores of classes.
        samples: Batches that errors of layers are seen on.
        placement: Of the shared file.
        reduce_range: 7-bit weights.
        threads: Of every runtime.
        environments: Runtime -> variables of the process in which it runs int8; those of this one where it has none.
        feeds: One array per input to time with; random ones where None.
        seconds: Of each measurement of files side by side.
        seed: Of measurements.
        clock: Says what takes how long.
        say: Told about long work.
        progress: Told about layers.
        known: (runtime, file) -> layers that were timed already.
    """

    fp32: Path
    int8: Path
    calibrated: Calibrated
    folder: Path
    timed: tuple[str, ...] = ()
    judged: str = "openvino"
    lost: Callable[[Path, str], Gap | None] | None = None
    allowed: float | None = None
    classes: tuple[int, ...] = ()
    samples: Sequence[Feeds] = ()
    placement: Placement = "openvino"
    reduce_range: bool = False
    threads: int = 1
    environments: Mapping[str, Environment] = field(default_factory=dict)
    feeds: Sequence[Array] | None = None
    seconds: float = DECIDING_SECONDS
    seed: int = 0
    clock: Clock = field(default_factory=current_clock)
    say: Callable[[str], None] = lambda line: None
    progress: Progress = field(default_factory=SilentProgress)
    known: dict[tuple[str, Path], Mapping[str, LayerRun]] = field(default_factory=dict)


@dataclass(frozen=True)
class MixedFile:
    """A file, and why it is as it is.

    Args:
        placement: Of its pairs.
        keep_float: Layer that stays float -> why.
        why: One sentence.
        runs: Runtime -> layer -> as it was executed, where that was looked at.
        against: Runtime -> how it compares there: with "int8", the shared all-int8 file, and with "float".
    """

    placement: Placement
    keep_float: Mapping[str, str]
    why: str
    runs: Mapping[str, Mapping[str, LayerRun]] = field(default_factory=dict)
    against: Mapping[str, Mapping[str, Comparison]] = field(default_factory=dict)


@dataclass(frozen=True)
class Mixed:
    """What was found.

    Args:
        shared: The file for every runtime.
        own: Runtime -> a file for it alone.
        errors: Layer -> error at the outputs when it alone is int8; empty where accuracy asked for no float layer.
        as_float: Runtime -> layer -> as executed in the float file.
        as_int8: The same of the all-int8 file with which that runtime is fastest.
        accuracy: What was judged, as report.json has it; empty without data.
        remarks: What the user should know.
    """

    shared: MixedFile
    own: Mapping[str, MixedFile] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)
    as_float: Mapping[str, Mapping[str, LayerRun]] = field(default_factory=dict)
    as_int8: Mapping[str, Mapping[str, LayerRun]] = field(default_factory=dict)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def race(request: MixRequest, runtime: str, files: Mapping[str, Path]) -> tuple[dict[str, Timing], float]:
    """Files side by side in one runtime, one that several names stand for once."""
    paths = list(dict.fromkeys(files.values()))
    environment = request.environments.get(runtime, ())
    jobs = [
        (Artifact(str(place), path, "onnx", "fp32"), runtime)
        if path == request.fp32
        else (Artifact(str(place), path, "onnx", "int8", environment=environment), runtime)
        for place, path in enumerate(paths)
    ]
    measured = request.clock.artifacts(
        jobs, threads=request.threads, budget_s=request.seconds, seed=request.seed, feeds=request.feeds
    )
    timings = dict(zip(paths, measured.complete(), strict=True))
    return {name: timings[path] for name, path in files.items()}, measured.floor


def run_layers(request: MixRequest, runtime: str, files: Sequence[Path]) -> list[Mapping[str, LayerRun]]:
    """What every layer of each file takes in a runtime; what was timed before is remembered.

    Raises:
        MeasureError: See `layer_times`.
    """
    missing = [file for file in files if (runtime, file) not in request.known]
    if missing:
        setting = Setting(runtime, "int8", request.threads, environment=request.environments.get(runtime, ()))
        # Files side by side are what decides; this only proposes.
        seconds = min(_SECONDS_EACH, request.seconds / 40)
        times = request.clock.layer_times(missing, request.fp32, setting, feeds=request.feeds, seconds=seconds)
        request.known.update({(runtime, file): found for file, found in zip(missing, times, strict=True)})
    return [request.known[runtime, file] for file in files]


def layer_costs(request: MixRequest, found: Mixed, runtime: str) -> LayerCosts:
    """What both choices cost each layer in a runtime."""
    return LayerCosts(
        {layer: run.ms for layer, run in found.as_float[runtime].items()},
        {layer: run.ms for layer, run in found.as_int8[runtime].items()},
        border_ms(runtime, layer_borders(request)),
    )


def layer_borders(request: MixRequest) -> dict[tuple[str, str], int]:
    """Layers that can be int8, each with one that reads what it gives -> numbers that pass between them."""
    layers = set(request.calibrated.layers)
    sizes = Owners(read_graph(onnx.load(request.fp32)).graph).borders
    return {pair: size for pair, size in sizes.items() if layers.issuperset(pair)}


def write_mix(request: MixRequest, placement: Placement, keep_float: Collection[str]) -> Path:
    """A candidate's file; the all-int8 one is there already, and so is one that was asked for before."""
    if not keep_float and placement == request.placement:
        return request.int8
    layers = sorted(keep_float)
    name = hashlib.sha256("\n".join([placement, *layers]).encode()).hexdigest()[:16]
    path = request.folder / f"mix-{name}.onnx"
    if not path.is_file():
        reasons = dict.fromkeys(layers, "")
        write_qdq(
            request.calibrated, path, placement=placement, reduce_range=request.reduce_range, keep_float=reasons
        )
    return path
