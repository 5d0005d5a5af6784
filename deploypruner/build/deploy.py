"""The file to ship, and everything that whoever loads it has to know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deploypruner.build.feeds import verification_feeds
from deploypruner.build.folder import BuildFolder
from deploypruner.build.provenance import class_names, preprocessing_of
from deploypruner.build.state import Build
from deploypruner.device.machine import Machine
from deploypruner.errors import DeployPrunerError
from deploypruner.measure.files import external_files
from deploypruner.measure.rows import file_bytes
from deploypruner.records import Row, TensorSpec
from deploypruner.report import Report, headline
from deploypruner.report.gains import best_dense
from deploypruner.report.on_device import device_text
from deploypruner.report.ship import ON_DEVICE
from deploypruner.runtime import Array, in_float32, runtimes
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.sparse.library import EXTENSION


def within(folder: BuildFolder, path: str) -> str:
    """A path inside the build folder, relative to it; another as it is."""
    root, found = folder.root.resolve(), Path(path).resolve()
    return found.relative_to(root).as_posix() if path and found.is_relative_to(root) else path


def deploy_of(build: Build, report: Report) -> dict[str, Any]:
    """What report.json has under `deploy`: the recommended file, where none is the fastest dense fp32 one.

    Args:
        build: Measured.
        report: Of it.
    """

    def about(specs: tuple[TensorSpec, ...], row: Row) -> dict[str, Any]:
        return {"inputs": inputs_of(build, specs, row), "classes": class_names(build)}

    return _deployed(build.folder, report, about)


def deployed_again(folder: BuildFolder, report: Report) -> dict[str, Any]:
    """The same of a build that was timed again: another file may be the fastest now, and threads may be others.

    Args:
        folder: Of the build.
        report: With its new times and the old `deploy`, whose inputs and classes stay.
    """
    before = report.deploy
    found = _deployed(folder, report, lambda specs, row: {name: before[name] for name in ("inputs", "classes")})
    same = found.get("artifact") == before.get("artifact")  # what was embedded was made from that one
    return found | ({"pixels": before["pixels"]} if found and same and "pixels" in before else {})


def _deployed(
    folder: BuildFolder, report: Report, about: Callable[[tuple[TensorSpec, ...], Row], dict[str, Any]]
) -> dict[str, Any]:
    if any(not check.passed for check in report.verification):
        return {}
    row = headline(report).recommended or best_dense(report.rows)
    if row is None or not row.file:
        return {}
    path, runtime = folder.path(row.file), runtimes.get(row.runtime)
    try:
        specs = runtime().open(path, threads=row.threads).inputs
    except DeployPrunerError:  # measuring has said why
        return {}
    sparse = uses_sparse_operations(path)
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else list(external_files(path))
    extension = folder.path(EXTENSION) if sparse else None
    files = [path, *beside, *([extension] if extension is not None else [])]
    load = list(runtime.usage(path, [spec.name for spec in specs], threads=row.threads, extension=extension))
    environment = dict(row.environment)
    if environment:  # read when the runtime is loaded
        load[0] = f"import os; os.environ.update({environment}); {load[0]}"
    return {
        "file": row.file,
        "files": [within(folder, str(file)) for file in files],
        "bytes": file_bytes(path) + (extension.stat().st_size if extension is not None else 0),
        "artifact": row.name,
        "runtime": row.runtime,
        "threads": row.threads,
        "version": _version(report, row.runtime),
        **about(specs, row),
        "environment": environment,
        "load": load,
    }


def _version(report: Report, runtime: str) -> str:
    """Of the runtime's package where it was timed."""
    there = report.environment.get("versions", {}).get(in_float32(runtime))
    return str(there or runtimes.get(runtime)().version()).partition("-")[0]


def write_device_text(folder: BuildFolder, report: Report, machine: Machine) -> None:
    """How the file to ship is loaded on the machine it is for, where that is another one; else no such file."""
    text = device_text(report, machine.described) if machine.elsewhere else ""
    if text:
        folder.write_text(ON_DEVICE, text)
    elif folder.has(ON_DEVICE):
        folder.discard(ON_DEVICE)


def inputs_of(build: Build, specs: tuple[TensorSpec, ...], row: Row) -> list[dict[str, Any]]:
    """Each input of a file: what is known of its shape and of the numbers that belong into it."""
    feeds = [np.concatenate(arrays) for arrays in zip(*verification_feeds(build), strict=True)]
    prepared = preprocessing_of(build)
    found = []
    for number, spec in enumerate(specs):
        seen = feeds[number] if number < len(feeds) and build.data is not None else None
        images = prepared if number == 0 else None
        found.append(
            {
                "name": spec.name,
                "shape": [
                    "N" if size is None and axis == 0 else "?" if size is None else size
                    for axis, size in enumerate(spec.shape)
                ],
                "layout": "NCHW" if images is not None else _layout(spec),
                "dtype": spec.dtype,
                "range": _pixel_range(images) if images is not None else _seen_range(seen),
                "mean": None if images is None else images["mean"],
                "std": None if images is None else images["std"],
            }
        )
    return found


def _layout(spec: TensorSpec) -> str:
    """NCHW where a second axis of 1, 3 or 4 says so, "" where nobody knows."""
    return "NCHW" if len(spec.shape) == 4 and spec.shape[1] in (1, 3, 4) else ""


def _pixel_range(images: dict[str, Any]) -> list[float]:
    pairs = list(zip(images["mean"], images["std"], strict=True))
    return [min(-mean / std for mean, std in pairs), max((1 - mean) / std for mean, std in pairs)]


def _seen_range(seen: Array | None) -> list[float] | None:
    """Smallest and largest number of a few validation samples; None without data."""
    return None if seen is None or not seen.size else [float(seen.min()), float(seen.max())]
