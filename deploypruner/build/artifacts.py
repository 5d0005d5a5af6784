"""Files that several stages write: a module in both precisions, and its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from deploypruner import target
from deploypruner.atomic import file_sha256
from deploypruner.build.feeds import calibration_feeds
from deploypruner.build.folder import BuildFolder
from deploypruner.build.provenance import metadata_of
from deploypruner.build.stage import stage_file
from deploypruner.build.state import Build
from deploypruner.errors import TraceError
from deploypruner.export import exporters
from deploypruner.export.metadata import label_onnx
from deploypruner.export.offered import with_offer
from deploypruner.graph.open_axes import OpenAxis
from deploypruner.quantize.placement import Placement, placement_in
from deploypruner.quantize.static import Calibrated, QuantizationSummary, calibrate, quantize_static, write_qdq
from deploypruner.records import Artifact
from deploypruner.search.certify import DENSE_MIXED

_MODELS, _SUMMARY = ("dense.fp32.onnx", "dense.int8.onnx"), stage_file("dense.json")
# Runtimes that want the pairs elsewhere, and the file that each may get.
_OWN = {"onnxruntime": "dense.int8.onnxruntime.onnx"}

DENSE = (*_MODELS, _SUMMARY)
"""Files of the dense model: both precisions, and what became int8."""

DENSE_OWN = tuple(_OWN.values())
"""Its int8 files for runtimes that want their pairs elsewhere, where those are other files."""

# For every runtime whose pairs stand alike, and for one that wants them elsewhere.
_MIXED = {"": stage_file("dense.mixed.onnx")}
_MIXED |= {runtime: stage_file(f"dense.mixed.{runtime}.onnx") for runtime in _OWN}

MIXED = tuple(_MIXED.values())
"""The dense model in int8 but for some layers, where a budget of time is for that: one of these."""


def with_dense(build: Build) -> Build:
    """Write the dense model in both precisions, unless this build has done so before, and give both artifacts.

    Several stages come here, and a resumed build may skip the one that wrote the files.
    """
    if build.artifacts:
        return build
    dense = _written_before(build.folder)
    if dense is None:
        dense = _write_dense(build)
        build.folder.write_json(_SUMMARY, {"quantization": asdict(dense), "sha256": _hashes(build.folder)})
    return dense_artifacts(replace(build, quantized=replace(build.quantized, dense=dense)))


def _written_before(folder: BuildFolder) -> QuantizationSummary | None:
    """What became int8 where the files are as this build wrote them; None where they have to be written."""
    if not all(map(folder.has, DENSE)):
        return None
    document = folder.read_json(_SUMMARY)
    return QuantizationSummary.from_json(document["quantization"]) if document["sha256"] == _hashes(folder) else None


def _hashes(folder: BuildFolder) -> dict[str, str]:
    return {name: file_sha256(folder.path(name)) for name in (*_MODELS, *DENSE_OWN) if folder.has(name)}


def _write_dense(build: Build) -> QuantizationSummary:
    """Both precisions, and int8 as a measured runtime wants it where that is another file: a baseline at its best."""
    summary, calibrated = write_mixable(build, build.traced.module, _MODELS, "openvino")
    shared = build.folder.path(_MODELS[1])
    for runtime, name in _OWN.items():
        if runtime in build.measured_runtimes:
            with build.folder.writing(name) as path:
                write_mixed(build, calibrated, path, placement=placement_in(runtime))
            if file_sha256(build.folder.path(name)) == file_sha256(shared):
                build.folder.discard(name)
    return summary


def write_int8(build: Build, module: nn.Module, folder: Path, *, batches: int) -> tuple[Path, Path]:
    """Write a module in both precisions to another folder than the build's, calibrated on a few batches: for timing.

    Returns:
        The fp32 and the int8 file.
    """
    fp32, int8 = folder / "model.fp32.onnx", folder / "model.int8.onnx"
    _export(build, module, fp32, open_axes=())
    quantize_static(
        fp32,
        int8,
        calibration=islice(calibration_feeds(build), batches),
        method=build.recipe.quantize.method,
        placement="sparse",
        reduce_range=reduces_range(build),
    )
    return fp32, int8


def write_mixable(
    build: Build, module: nn.Module, names: tuple[str, str], placement: Placement
) -> tuple[QuantizationSummary, Calibrated]:
    """Write a module in both precisions to the build folder, under the names of the two files.

    Returns:
        What became int8, and what any mix of int8 and float is written from.
    """
    fp32, int8 = names
    placements = tuple(dict.fromkeys((placement, *map(placement_in, _OWN))))
    with build.folder.writing(fp32) as path:
        _export(build, module, path, open_axes=build.traced.open_axes)
        label_onnx(path, metadata_of(build))
    with build.folder.writing(int8) as path:
        calibrated = calibrated_for(build, build.folder.path(fp32), placements, folder=path.parent)
        return write_mixed(build, calibrated, path, placement=placement), calibrated


def calibrated_for(build: Build, fp32: Path, placements: Sequence[Placement], *, folder: Path) -> Calibrated:
    """What int8 files are written from, as the recipe wants it."""
    return calibrate(
        fp32,
        calibration_feeds(build),
        folder=folder,
        method=build.recipe.quantize.method,
        placements=placements,
        reduce_range=reduces_range(build),
        repair=build.recipe.quantize.repair and build.data is not None,  # noise is no guide
        progress=build.progress,
    )


def write_mixed(
    build: Build,
    calibrated: Calibrated,
    path: Path,
    *,
    placement: Placement,
    keep_float: Mapping[str, str] | None = None,
) -> QuantizationSummary:
    """Write a mix of int8 and float for the build's target."""
    summary = write_qdq(
        calibrated, path, placement=placement, reduce_range=reduces_range(build), keep_float=keep_float
    )
    label_onnx(path, metadata_of(build))
    return summary


def reduces_range(build: Build) -> bool:
    """Do int8 weights get 7 bits?"""
    return target.reduces_range(build.recipe.quantize.weight_bits, build.clock.machine.target)


def _export(build: Build, module: nn.Module, fp32: Path, *, open_axes: Sequence[OpenAxis]) -> None:
    graph, exporter = build.traced, exporters.get("onnx")()
    try:
        exporter.write(module, graph.example_inputs, fp32, dynamic_batch=graph.dynamic_batch, open_axes=open_axes)
    except TraceError as error:
        if build.model is None or graph.front_end != "torch.export":
            raise
        raise with_offer(error, exporter, build.model, build.example_inputs) from error


def dense_artifacts(build: Build) -> Build:
    """The build with the dense model's files as artifacts, where it has none so far."""
    if build.artifacts:
        return build
    cost, folder = build.traced.cost(), build.folder
    artifacts: tuple[Artifact, ...] = (
        Artifact("dense fp32", folder.path(_MODELS[0]), "onnx", "fp32", "dense", cost),
        Artifact("dense int8", folder.path(_MODELS[1]), "onnx", "int8", "dense", cost),
    )
    artifacts += tuple(
        replace(artifacts[1], path=folder.path(name), runtime=runtime)
        for runtime, name in _OWN.items()
        if folder.has(name)
    )
    return with_dense_mixed(replace(build, artifacts=artifacts))


def with_dense_mixed(build: Build) -> Build:
    """The build with the dense model's mix of int8 and float among its artifacts if its file is there."""
    others = (artifact for artifact in build.artifacts if artifact.name != DENSE_MIXED)
    found = (dense_mixed(build, runtime) for runtime, name in _MIXED.items() if build.folder.has(name))
    return replace(build, artifacts=(*others, *found))


def dense_mixed(build: Build, runtime: str) -> Artifact:
    """The dense model's mix of int8 and float for a runtime, whether its file is there or not."""
    alone = runtime if runtime in _OWN else ""
    path = build.folder.path(_MIXED[alone])
    return Artifact(DENSE_MIXED, path, "onnx", "int8", "dense", build.traced.cost(), runtime=alone)


def write_state(folder: BuildFolder, name: str, module: nn.Module) -> None:
    """Write all parameters and buffers as safetensors; tensors under two names are written under both."""
    state: dict[str, Tensor] = {k: v.detach().contiguous().clone() for k, v in module.state_dict().items()}
    with folder.writing(name) as path:
        save_file(state, path)
