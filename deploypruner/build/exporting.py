"""One point of a finished build, made into files: nothing is searched or trained again.

The plan and, for points of the finished network, its weights come out of the build; every other point has the weights
of the user's model, repaired as they were when it was judged. The files are verified as those of a build are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from deploypruner import __version__
from deploypruner.atomic import file_sha256
from deploypruner.build.artifacts import write_mixable, write_mixed, write_state
from deploypruner.build.evaluate import form_judge
from deploypruner.build.folder import BuildFolder
from deploypruner.build.judging import make_judge
from deploypruner.build.points import DENSE, FINISHED, REPAIRED
from deploypruner.build.promise import require_verified
from deploypruner.build.register import stage_files, stages
from deploypruner.build.results import check_document
from deploypruner.build.state import Build, Given
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.errors import DeployPrunerError, InputError, nearest, said_by
from deploypruner.export import exporters
from deploypruner.progress import Progress, SilentProgress
from deploypruner.quantize.by_weight import layers_of
from deploypruner.recipe.reading import read_recipe
from deploypruner.records import Check
from deploypruner.report import Report, read_report
from deploypruner.runtime import default_runtimes
from deploypruner.scratch import scratch

_FP32, _INT8 = "model.fp32.onnx", "model.int8.onnx"
_ABOUT = "point.json"
# Of a finished build, whatever of it there is.
_COPIED = ("plan.json", "weights.safetensors", "libdeploypruner_openvino.so")
_AGAIN = "compile again, or export with the version that made it"


@dataclass(frozen=True)
class ExportedPoint:
    """What was made.

    Args:
        folder: With the files.
        point: As the build's report has it.
        stands_for: What its accuracy stands for, in a sentence.
        checks: Every comparison of two forms of it.
        found: Its files judged now: name -> metric, value and agreement; empty without data.
    """

    folder: Path
    point: Mapping[str, Any]
    stands_for: str
    checks: tuple[Check, ...]
    found: Mapping[str, Mapping[str, Any]]


def export_point(
    folder: str | Path,
    point: str,
    out: str | Path,
    *,
    given: Given | None = None,
    changes: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda line: None,
    progress: Progress | None = None,
) -> ExportedPoint:
    """Make the files of one point.

    Args:
        folder: A finished build.
        point: Its id.
        out: New folder for the files: model.fp32.onnx, model.int8.onnx, the IR, model.pt2, plan.json,
            weights.safetensors and point.json.
        given: Model and data that the recipe does not name.
        changes: Nested dict to lay over the build's recipe: where the model and the data are now.
        say: Called with a line for each step.
        progress: Told about long work.

    Raises:
        InputError: No build, a build without points or of another version, no such point, another model than the
            build's, or an `out` that is there.
        VerificationError: The files disagree with each other; they are written all the same.
        DeployPrunerError: Whatever loading model or data finds wrong.
    """
    source = BuildFolder(Path(folder))
    report, manifest = read_report(source.root), source.manifest()
    chosen = find_point(report, point, source.root)
    _check_version(manifest, source.root)
    target = _new_folder(Path(out))
    recipe = read_recipe(source.path("recipe.toml"), dict(changes or {}))
    if not recipe.model.source and (given is None or given.model is None):
        raise InputError(
            f"{source.root} was made from Python, and its recipe names no model", hint="name it with --model"
        )
    build = Build(
        recipe=recipe,
        folder=target,
        command=report.command,
        given=given or Given(),
        say=say,
        progress=progress or SilentProgress(),
    )
    for name in ("load", "trace"):
        build = stages.get(name)().run(build)
    _check_model(build, manifest)
    target.prepare()
    try:
        build, stands_for = _made(build, source, chosen, manifest)
        found = _judged(build)
        document = {
            "point": dict(chosen),
            "build": str(source.root),
            "stands_for": stands_for,
            "found": found,
            "verification": [check_document(check) for check in build.checks],
        }
        target.write_json(_ABOUT, document)
        target.write_manifest({"command": report.command, "model_sha256": build.sha256})
        _tidy(target)
    except (DeployPrunerError, KeyboardInterrupt):
        target.clear()
        raise
    finally:
        target.release()
    require_verified(build)
    return ExportedPoint(target.root, chosen, stands_for, build.checks, found)


def find_point(report: Report, point: str, folder: Path) -> Mapping[str, Any]:
    """The point of a report with this id.

    Raises:
        InputError: There is none.
    """
    known = {str(one["id"]): one for one in report.points}
    if not known:
        raise InputError(f"{folder} has no points: it was made before builds kept them", hint="compile again")
    if point not in known:
        near = nearest(point, known)
        listed = f"`deploypruner export {folder}` lists all {len(known)}"
        raise InputError(f"no point '{point}' in {folder}", hint=near if "did you" in near else listed)
    return known[point]


def _check_version(manifest: Mapping[str, Any], folder: Path) -> None:
    made = (manifest.get("versions") or {}).get("deploypruner")
    if made != __version__:
        raise InputError(
            f"{folder} was made by DeployPruner {made or 'of an unknown version'}, this is {__version__}", hint=_AGAIN
        )


def _check_model(build: Build, manifest: Mapping[str, Any]) -> None:
    if manifest.get("model_sha256") != build.sha256:
        raise InputError(
            f"the weights of {build.source} are not those the build was made from",
            hint="give the model it was made from with --model (and --weights)",
        )


def _new_folder(out: Path) -> BuildFolder:
    target = BuildFolder(out, "point", names={*stage_files(), _ABOUT, *_COPIED})
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"--out {out} is there and not empty", hint="name a new folder")
    return target


def _tidy(target: BuildFolder) -> None:
    """Nothing goes on from an exported point, so that its folder holds no state."""
    for name in target.own():
        if name.startswith("stages/"):
            target.discard(name)
    with suppress(OSError):
        target.path("stages").rmdir()


def _made(
    build: Build, source: BuildFolder, point: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[Build, str]:
    """The build with all files written and verified, and what its accuracy stands for."""
    name = str(point["plan"])
    plan = make_plan(build.traced, {}) if not name else Plan.from_json(source.read_json(name))
    plan.check(build.traced)
    build = stages.get("remove")().run(replace(build, plan=plan))
    build, stands_for = _weighted(build, source, point, manifest)
    if point["weights"] == FINISHED and point["kind"] == "finished":
        _copied(build, source, manifest)
    else:
        build.folder.write_json("plan.json", plan.to_json())
        _written(build, point)
        build = stages.get("export")().run(build)
    return stages.get("verify")().run(build), stands_for


def _weighted(
    build: Build, source: BuildFolder, point: Mapping[str, Any], manifest: Mapping[str, Any]
) -> tuple[Build, str]:
    """The pruned module with the weights of the point."""
    module = build.compiled
    judged = f"{point['quality_basis']} ({point['samples']})" if point["samples"] else str(point["quality_basis"])
    if point["weights"] == DENSE:
        return build, f"the model as it was given; its numbers are of the model {judged}"
    if point["weights"] == FINISHED:
        path = source.path("weights.safetensors")
        _check_unchanged(source, "weights.safetensors", manifest)
        try:
            module.load_state_dict(load_file(path))
        except (SafetensorError, OSError, RuntimeError) as error:
            raise InputError(f"{path} cannot be read: {said_by(error)}", hint="copy the build again") from error
        module.eval()
        return build, f"the weights of the finished build, trained if it was; its numbers are {judged}"
    assert point["weights"] == REPAIRED, "there are three kinds of weights"
    if build.data is None:
        return build, "cut and neither repaired nor trained, for want of data: nothing is known about its accuracy"
    verdict, _ = make_judge(build).repair(module, build.planned.keep, ways=1)
    module.eval()
    top1 = "" if verdict.top1 is None else f", top-1 {verdict.top1:.1f} %"
    now = f"{verdict.kind} {verdict.loss:.3g}{top1} on {verdict.samples} training samples held out"
    return build, f"repaired and not trained: {now}; training would give more, and its latency does not change by it"


def _written(build: Build, point: Mapping[str, Any]) -> None:
    """fp32 and int8 files, the latter with the point's layers in float and its pairs where they stood when timed."""
    names, placement = (_FP32, _INT8), point["placement"]
    _, calibrated = write_mixable(build, build.compiled, names, placement)
    layers = [*layers_of(build.folder.path(_FP32), point.get("floats") or ()), *(point.get("layers") or ())]
    if layers:
        with build.folder.writing(_INT8) as path:
            reasons = dict.fromkeys(layers, f"as in point {point['id']}")
            write_mixed(build, calibrated, path, placement=placement, keep_float=reasons)


def _copied(build: Build, source: BuildFolder, manifest: Mapping[str, Any]) -> None:
    """Everything that the build made of its finished network, as it is there."""
    listed = sorted(manifest["sha256"])
    for name in (name for name in listed if name.startswith("model.") or name in _COPIED):
        _check_unchanged(source, name, manifest)
        with build.folder.writing(name) as path:
            shutil.copyfile(source.path(name), path)
    write_state(build.folder, "weights.safetensors", build.compiled)


def _check_unchanged(source: BuildFolder, name: str, manifest: Mapping[str, Any]) -> None:
    path, told = source.path(name), manifest.get("sha256", {}).get(name)
    if not path.is_file() or file_sha256(path) != told:
        raise InputError(
            f"{path} is not what its build wrote", hint="copy the whole build folder again, or compile again"
        )


def _judged(build: Build) -> dict[str, dict[str, Any]]:
    """Both files on the validation samples that a build judges by, beside the dense model."""
    if build.data is None:
        return {}
    graph, runtime = build.traced, (build.recipe.measure.runtimes or default_runtimes())[0]
    with scratch() as folder:
        dense = folder / "dense.onnx"
        exporters.get("onnx")().write(
            graph.module, graph.example_inputs, dense, dynamic_batch=graph.dynamic_batch, open_axes=graph.open_axes
        )
        judge = form_judge(build, dense, runtime)
        forms = {"dense": judge.reference}
        forms |= {name: judge.quality(build.folder.path(name), runtime) for name in (_FP32, _INT8)}
    return {
        name: {
            "runtime": runtime,
            "metric": found.metric.name,
            "unit": found.metric.unit,
            "value": found.accuracy,
            "agreement": found.agreement,
            "agreement_kind": found.agreement_kind,
            "samples": found.samples,
        }
        for name, found in forms.items()
    }
