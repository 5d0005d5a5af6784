"""The int8 files of a build: which of their layers stay float, for the accuracy that was promised and for speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deploypruner.build.artifacts import reduces_range, write_mixed
from deploypruner.build.evaluate import form_judge
from deploypruner.build.feeds import calibration_feeds, timing_feeds, verification_feeds
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.state import Build
from deploypruner.latency.layer_times import LayerRun
from deploypruner.measure.profiling import can_profile
from deploypruner.quantize.float_islands import float_operations
from deploypruner.quantize.placement import Placement
from deploypruner.quantize.sensitivity import class_outputs, first_samples
from deploypruner.quantize.static import Calibrated, QuantizationSummary
from deploypruner.records import Comparison
from deploypruner.runtime import default_runtimes, opens, runtimes
from deploypruner.scratch import scratch
from deploypruner.search.choose import INT8_AGREEMENT_DROP, INT8_DROP
from deploypruner.search.kept import allowed_points
from deploypruner.search.mixes import Mixed, MixedFile, MixRequest
from deploypruner.search.mixing import mix


def own_file(runtime: str) -> str:
    """Name of a runtime's own int8 file."""
    return f"model.int8.{runtime}.onnx"


def mix_precision(
    build: Build,
    names: tuple[str, str],
    calibrated: Calibrated,
    *,
    summary: QuantizationSummary,
    placement: Placement,
) -> tuple[QuantizationSummary, dict[str, Any]]:
    """Choose the layers that stay float, and write the int8 files anew where there are any.

    Args:
        build: With the pruned model's two files written.
        names: Of these, fp32 and int8.
        calibrated: They were written from.
        summary: Of the int8 one.
        placement: Of its pairs.

    Returns:
        The summary of the shared file as it is then, and the report's `precision`.
    """
    fp32, int8 = (build.folder.path(name) for name in names)
    timed = _timed(build)
    with scratch() as folder:
        judged = judged_in(build)
        judge = _judge(build, judged) if build.data is not None else None
        request = replace(
            mix_request(build, (fp32, int8), calibrated, folder),
            # What zeros give is measured by `sparse`; nothing of it shows here.
            timed=() if build.zeros is not None else timed,
            judged=judged,
            lost=None if judge is None else judge.lost,
            allowed=None if judge is None else _allowed(build, judge, fp32, int8, runtime=judged),
            placement=placement,
        )
        found = mix(request)
    if found.shared.keep_float:
        with build.folder.writing(names[1]) as path:
            kept = found.shared.keep_float
            summary = write_mixed(build, calibrated, path, placement=placement, keep_float=kept)
    owned = {}
    for runtime, file in found.own.items():
        with build.folder.writing(own_file(runtime)) as path:
            kept = file.keep_float
            owned[runtime] = write_mixed(build, calibrated, path, placement=file.placement, keep_float=kept)
    folder = build.folder.path(names[1]).parent
    return summary, mix_document(found, calibrated.layers, summary, owned, int8=folder / names[1])


def mix_request(build: Build, files: tuple[Path, Path], calibrated: Calibrated, folder: Path) -> MixRequest:
    """What every mix of a build has in common; nothing is timed or judged yet.

    Args:
        build: Loaded and traced.
        files: fp32 and int8.
        calibrated: They were written from.
        folder: For candidates.
    """
    return MixRequest(
        fp32=files[0],
        int8=files[1],
        calibrated=calibrated,
        folder=folder,
        classes=class_outputs(build.tasks),
        samples=first_samples(calibration_feeds(build)),
        reduce_range=reduces_range(build),
        threads=build.threads,
        environments=build.environments,
        feeds=timing_feeds(build) or verification_feeds(build)[0],
        seed=build.recipe.seed,
        clock=build.clock,
        say=build.say,
        progress=build.progress,
    )


def _timed(build: Build) -> tuple[str, ...]:
    """Measured runtimes that tell what every layer takes."""
    return tuple(name for name in build.measured_runtimes if can_profile(name))


def judged_in(build: Build) -> str:
    """The runtime that a promise is about, or else the first one measured that opens the file."""
    path = build.folder.path("model.int8.onnx")
    first = () if build.found is None else (build.found.setting.runtime,)
    names = (*first, *build.measured_runtimes, *default_runtimes())
    return next(name for name in names if opens(runtimes.get(name), path))


def _judge(build: Build, runtime: str) -> FormJudge:
    """On the samples that the finished artifacts will be judged on, against the dense fp32 model."""
    dense = next(a for a in build.artifacts if (a.pattern, a.precision) == ("dense", "fp32"))
    return form_judge(build, dense.path, runtime)


def _allowed(build: Build, judge: FormJudge, fp32: Path, int8: Path, *, runtime: str) -> float | None:
    """Points that may be lost: what was asked, else what a promise allows and int8 alone may cost."""
    asked = build.recipe.measure.accuracy_drop
    gap = judge.lost(int8, runtime)
    if asked is not None or gap is None:
        return asked
    promised = allowed_points(gap, None)
    if gap.lost <= (alone := INT8_DROP if gap.labelled else INT8_AGREEMENT_DROP):
        return promised
    before = judge.lost(fp32, runtime)
    return promised if before is None else min(promised, max(before.lost, 0.0) + alone)


def mix_document(
    found: Mixed,
    layers: tuple[str, ...],
    summary: QuantizationSummary,
    own: Mapping[str, QuantizationSummary],
    *,
    int8: Path,
) -> dict[str, Any]:
    """As report.json has it.

    Args:
        found: What was chosen.
        layers: That can be int8.
        summary: Of the shared file.
        own: Runtime -> that of its own file.
        int8: The shared file; others lie beside it.
    """
    files = [_file(int8, found.shared, summary, runtime="")]
    files += [_file(int8.with_name(own_file(name)), found.own[name], own[name], runtime=name) for name in own]
    listed = [*layers, *(name for name in summary.left_float if name not in layers)]
    return {
        "note": found.shared.why,
        "accuracy": dict(found.accuracy),
        "files": files,
        "layers": [_layer(found, summary, layer) for layer in listed],
        "remarks": list(found.remarks),
    }


def _file(path: Path, file: MixedFile, summary: QuantizationSummary, *, runtime: str) -> dict[str, Any]:
    return {
        "file": path.name,
        "runtime": runtime,
        "int8": summary.quantized,
        "float": len(summary.left_float),
        "placement": file.placement,
        "why": file.why,
        "left_float": dict(summary.left_float),
        "float_operations": float_operations(path, file.placement),
        "against": {
            name: {other: _compared(one) for other, one in compared.items()}
            for name, compared in file.against.items()
        },
        "executed": {
            name: {layer: run.executed for layer, run in runs.items()} for name, runs in file.runs.items() if runs
        },
        "float_all_the_same": {
            name: islands
            for name, runs in file.runs.items()
            if (islands := _float_all_the_same(runs, summary, runtime=name, placement=file.placement))
        },
    }


def _float_all_the_same(
    runs: Mapping[str, LayerRun], summary: QuantizationSummary, *, runtime: str, placement: Placement
) -> dict[str, str]:
    """Layers with int8 weights that a runtime computes in float -> why."""
    wants_pair = runtime == "onnxruntime" and placement != "onnxruntime"
    why = (
        "its int8 kernel needs a pair behind the layer, where OpenVINO fuses what follows in float"
        if wants_pair
        else "the runtime has no int8 kernel for it here"
    )
    stored = {layer: run for layer, run in runs.items() if layer not in summary.left_float}
    return {layer: why for layer, run in stored.items() if run.executed and not run.int8}


def _compared(one: Comparison) -> dict[str, Any]:
    return {"ratio": one.ratio, "ratio_ci": list(one.ratio_ci), "verdict": one.verdict}


def _layer(found: Mixed, summary: QuantizationSummary, layer: str) -> dict[str, Any]:
    reason = summary.left_float.get(layer)
    return {
        "name": layer,
        "error": found.errors.get(layer),
        "precision": "int8" if reason is None else "float",
        "reason": reason or "",
        "times": {
            runtime: {"float_ms": _ms(found.as_float[runtime], layer), "int8_ms": _ms(found.as_int8[runtime], layer)}
            for runtime in found.as_int8
        },
    }


def _ms(runs: Mapping[str, LayerRun], layer: str) -> float | None:
    return runs[layer].ms if layer in runs else None
