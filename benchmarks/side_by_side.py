"""A trained CIFAR network as files of every precision, and all files of several networks timed in one run."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from benchmarks.engines import Engines, Samples, ratio, time_files
from deploypruner.export import exporters
from deploypruner.quantize import Placement, quantize_static
from deploypruner.sources.batches import Batches
from deploypruner.sparse.convert import sparsify

_CALIBRATED, _ROUNDS = 128, 20
_SHAPE = (1, 3, 32, 32)


def write_files(module: nn.Module, train: Batches, folder: Path, *, sparse: bool) -> None:
    """fp32.onnx, int8.onnx, and where there are zeros sparse.onnx: every layer that can be in our kernels."""
    fp32 = folder / "fp32.onnx"
    exporters.get("onnx")().write(module.eval(), (torch.zeros(_SHAPE),), fp32, dynamic_batch=False)
    batches = train.epoch(batch_size=1, seed=0, shuffle=True, augment=False)
    feeds = [[np.ascontiguousarray(inputs[0].numpy())] for inputs, _ in islice(batches, _CALIBRATED)]

    def int8(name: str, placement: Placement) -> Path:
        quantize_static(fp32, folder / name, calibration=iter(feeds), placement=placement)
        return folder / name

    int8("int8.onnx", "openvino")
    if sparse:
        found = sparsify(onnx.load(int8("gated.onnx", "sparse")), every=True)
        assert found.model is not None, f"{folder}: nothing could be converted"
        onnx.save(found.model, folder / "sparse.onnx")


def time_networks(folders: Mapping[str, Path], *, logs: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds of every file on one core in OpenVINO, interleaved.

    Args:
        folders: Name of a network -> where `write_files` put its files.
        logs: For what the worker prints.
        seconds: At least for so long.

    Returns:
        "NAME: int8", "NAME: fp32", "NAME: sparse" -> ms, and the ratio over the first network's int8 file.
    """
    paths = {
        f"{name}: {kind}": folder / f"{kind}.onnx"
        for name, folder in folders.items()
        for kind in ("int8", "fp32", "sparse")
        if (folder / f"{kind}.onnx").exists()
    }
    samples = time_paths(paths, "openvino", logs=logs, seconds=seconds)
    base = samples[next(iter(paths))]
    return {name: {"ms": ms_of(taken), **ratio(taken, base)} for name, taken in samples.items()}


def time_paths(paths: Mapping[str, Path], runtime: str, *, logs: Path, seconds: float) -> dict[str, Samples]:
    """Name -> nanoseconds of every file on one core in a runtime that opens all of them, interleaved."""
    with Engines(logs) as engines:
        worker = engines.start(runtime)
        files = [engines.open(worker, path, name) for name, path in paths.items()]
        assert not engines.failures, engines.failures
        return time_files([file for file in files if file is not None], rounds=_ROUNDS, seconds=seconds)


def ms_of(samples: Samples) -> float:
    """The median in milliseconds."""
    return float(np.median(samples)) / 1e6


def time_cells(times: Mapping[str, Any], name: str) -> str:
    """Three cells of a markdown table: fp32, int8, and int8 in our kernels."""
    found = (times.get(f"{name}: {kind}") for kind in ("fp32", "int8", "sparse"))
    return " | ".join("" if one is None else f"{one['ms']:.3f} ms, {one['ratio']:.2f}x" for one in found)
