"""quantize: fp32 ONNX of the dense and the pruned model, and one QDQ int8 ONNX from each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.stages.recover import write_state
from deploypruner.build.stages.score import training_batches
from deploypruner.build.state import Build, Feeds
from deploypruner.export import exporters
from deploypruner.graph.inputs import batch_size, noise_like
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.static import QuantizationSummary, quantize_static
from deploypruner.records import Artifact
from deploypruner.target import detect

_BATCH = 8
_DENSE = (stage_file("dense.fp32.onnx"), stage_file("dense.int8.onnx"))
_PRUNED = ("model.fp32.onnx", "model.int8.onnx")


class Quantize(Stage):
    """Write both precisions of both models; the dense ones are what the pruned ones are compared with."""

    name: ClassVar[str] = "quantize"
    saves: ClassVar[tuple[str, ...]] = (*_DENSE, *_PRUNED, stage_file("quantize.json"))

    def run(self, build: Build) -> Build:
        """Give the four ONNX artifacts."""
        if build.traced.front_end != "torch.export":  # ONNX may turn out to be impossible; the weights remain
            write_state(build.folder, "weights.safetensors", build.compiled)
        build = with_dense(build)
        pruned = _write(build, build.compiled, _PRUNED, "sparse" if "sparse" in build.facts else "openvino")
        facts = {"quantization": {**build.facts["quantization"], "pruned": asdict(pruned)}}
        build.folder.write_json(self.saves[-1], facts)
        return _with_pruned(replace(build, facts={**build.facts, **facts}))

    def restore(self, build: Build) -> Build:
        """The files are there."""
        facts = build.folder.read_json(self.saves[-1])
        return _with_pruned(_with_dense(replace(build, facts={**build.facts, **facts})))

    def document(self, build: Build) -> str:
        """How much became int8."""
        summary = build.facts["quantization"]["pruned"]
        samples = "random noise" if build.data is None else f"{summary['samples']} samples"
        return f"{summary['quantized']} layers int8, {len(summary['left_float'])} left float, ranges from {samples}"


def with_dense(build: Build) -> Build:
    """Write the dense model in both precisions, unless this run has done so before, and give both artifacts."""
    if build.artifacts:
        return build
    dense = _write(build, build.traced.module, _DENSE, "openvino")
    facts = {"quantization": {"dense": asdict(dense)}}
    return _with_dense(replace(build, facts={**build.facts, **facts}))


def write_int8(build: Build, module: nn.Module, folder: Path, *, batches: int) -> tuple[Path, Path]:
    """Write a module in both precisions to another folder than the build's, calibrated on a few batches: for timing.

    Returns:
        The fp32 and the int8 file.
    """
    fp32, int8 = folder / "model.fp32.onnx", folder / "model.int8.onnx"
    _export(build, module, fp32)
    _quantize(build, fp32, int8, calibration=islice(calibration_feeds(build), batches), placement="sparse")
    return fp32, int8


def _write(build: Build, module: nn.Module, names: tuple[str, str], placement: Placement) -> QuantizationSummary:
    fp32, int8 = names
    with build.folder.writing(fp32) as path:
        _export(build, module, path)
    with build.folder.writing(int8) as path:
        feeds = calibration_feeds(build)
        return _quantize(build, build.folder.path(fp32), path, calibration=feeds, placement=placement)


def _export(build: Build, module: nn.Module, fp32: Path) -> None:
    graph = build.traced
    exporters.get("onnx")().write(module, graph.example_inputs, fp32, dynamic_batch=graph.dynamic_batch)


def _quantize(
    build: Build, fp32: Path, int8: Path, *, calibration: Iterator[Feeds], placement: Placement
) -> QuantizationSummary:
    return quantize_static(
        fp32,
        int8,
        calibration=calibration,
        method=build.recipe.quantize.method,
        placement=placement,
        reduce_range=detect(build.recipe.target).saturates,
    )


def calibration_feeds(build: Build) -> Iterator[Feeds]:
    """Training samples without augmentation; seeded noise where there is no data."""
    samples = build.recipe.quantize.samples
    example = build.traced.example_inputs
    batch = _BATCH if build.traced.dynamic_batch else batch_size(example)
    count = max(1, samples // batch)
    if build.data is None:
        # Timing depends on the graph alone; 32 samples of noise are as good as many.
        generator = torch.Generator().manual_seed(build.recipe.seed)
        for _ in range(min(count, max(1, 32 // batch))):
            yield noise_like(example, batch, generator)
        return
    for inputs, _ in training_batches(build, batch_size=batch, count=count):
        if len(inputs[0]) == batch or build.traced.dynamic_batch:
            yield [np.ascontiguousarray(t.numpy()) for t in inputs]


def _with_dense(build: Build) -> Build:
    if build.artifacts:
        return build
    cost, folder = build.traced.cost(), build.folder
    artifacts = (
        Artifact("dense fp32", folder.path(_DENSE[0]), "onnx", "fp32", "dense", cost),
        Artifact("dense int8", folder.path(_DENSE[1]), "onnx", "int8", "dense", cost),
    )
    return replace(build, artifacts=artifacts)


def _with_pruned(build: Build) -> Build:
    folder = build.folder
    artifacts = (
        Artifact("pruned fp32", folder.path(_PRUNED[0]), "onnx", "fp32", build.pattern, build.pruned),
        Artifact("pruned int8", folder.path(_PRUNED[1]), "onnx", "int8", build.pattern, build.pruned),
    )
    return replace(build, artifacts=(*build.artifacts, *artifacts))
