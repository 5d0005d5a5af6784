"""report: the numbers and the proof, as JSON, as a page, and as a manifest of what was built."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any, ClassVar

from deploypruner.build.bounds import bounds_of
from deploypruner.build.deploy import deploy_of, within, write_device_text
from deploypruner.build.embedded import EMBEDDED, embedded
from deploypruner.build.folder import MANIFEST
from deploypruner.build.layer_table import layer_widths
from deploypruner.build.points import plans_of, points_of
from deploypruner.build.promise import kept_of, require_met, require_verified
from deploypruner.build.register import stages
from deploypruner.build.results import Point
from deploypruner.build.sparsity import fewer_zeros
from deploypruner.build.stage import Stage
from deploypruner.build.state import Build
from deploypruner.graph.capture.asked_axes import argument_names
from deploypruner.graph.inputs import carries_batch, tensors
from deploypruner.graph.open_axes import as_json
from deploypruner.measure import environment
from deploypruner.measure.statistics import compare
from deploypruner.recipe import Recipe, resolved_toml
from deploypruner.records import ACCURACY
from deploypruner.report import Report, StageTime, render_html, render_json
from deploypruner.report.ship import ON_DEVICE
from deploypruner.sparsity.assign.solver import DENSE

_MORE = {"macs": "larger --macs", "latency": "longer --latency", "speedup": "smaller --speedup"}


@stages.register("report")
class WriteReport(Stage):
    """Write report.json, report.html, recipe.toml and manifest.json; for another machine, how to load it there."""

    name: ClassVar[str] = "report"
    needs: ClassVar[tuple[str, ...]] = ("measure",)
    reads: ClassVar[tuple[str, ...]] = tuple(table.name for table in fields(Recipe))
    writes: ClassVar[tuple[str, ...]] = (
        *("recipe.toml", "report.json", "report.html", ON_DEVICE, EMBEDDED, "points/", MANIFEST),
    )

    def run(self, build: Build) -> Build:
        """Write the files."""
        points = points_of(build)
        report = make_report(build, points)
        for name in build.folder.own():
            if name.startswith("points/"):
                build.folder.discard(name)
        for name, plan in plans_of(build, points).items():
            build.folder.write_json(name, plan.to_json())
        build.folder.write_text("recipe.toml", resolved_toml(build.recipe))
        build.folder.write_text("report.json", render_json(report))
        build.folder.write_text("report.html", render_html(report))
        write_device_text(build.folder, report, build.clock.machine)
        build.folder.write_manifest(
            {
                "command": build.command,
                "model_sha256": build.sha256,
                "versions": environment()["versions"],
                "inputs": inputs_of(build),
            }
        )
        return build

    def validate(self, build: Build) -> None:
        """Refuse a model that failed a check, and one that does not keep what was promised."""
        require_verified(build)
        require_met(build)


def make_report(build: Build, points: Sequence[Point]) -> Report:
    """Everything the build knows, as one record."""
    graph = build.traced
    dense = graph.cost()
    report = Report(
        target=build.clock.machine.to_json(),
        environment=_environment(build),
        command=build.command,
        model={
            "name": build.name,
            "source": build.source,
            "sha256": build.sha256,
            "inputs": [list(t.shape) for t in tensors(build.example_inputs)],
            "open_axes": as_json(graph.open_axes),
        },
        settings=_settings(build),
        budget=budget_of(build),
        rows=tuple(replace(row, file=within(build.folder, row.file)) for row in build.rows),
        verification=build.checks,
        loop=() if build.found is None else tuple(asdict(line) for line in build.found.rounds),
        layers=layer_widths(build),
        frozen=graph.frozen,
        stages=tuple(StageTime(name, seconds) for name, seconds in build.seconds),
        warnings=warnings_of(build),
        dense=dense,
        pruned=build.pruned or dense,
        sparse=sparse_of(build),
        precision=build.precision,
        points=tuple(point.document for point in points),
        noise=build.noise,
    )
    report = replace(report, deploy=deploy_of(build, report))
    pixels, checks, remarks = embedded(build, report)
    return replace(
        report,
        deploy=report.deploy | ({"pixels": pixels} if pixels else {}),
        verification=(*report.verification, *checks),
        warnings=(*report.warnings, *remarks),
        files=_files(build),
    )


def _files(build: Build) -> tuple[str, ...]:
    """Names of what a finished folder holds, resume state left out."""
    own = {name for name in build.folder.own() if build.folder.has(name)}
    named = own | {"recipe.toml", "report.json", "report.html", MANIFEST}
    return tuple(sorted(name for name in named if not name.startswith("stages/")))


def inputs_of(build: Build) -> list[dict[str, Any]]:
    """What the artifacts take: names, the example's shapes and types, and which axes may have other lengths."""
    graph = build.traced
    given = tensors(graph.example_inputs)
    names = argument_names(graph.module, graph.example_inputs)
    count = Counter(names)
    return [
        {
            "name": name if count[name] == 1 else f"{name}[{number - names.index(name)}]",
            "example": [1, *t.shape[1:]] if graph.dynamic_batch and t.ndim else list(t.shape),
            "dtype": str(t.dtype).removeprefix("torch."),
            "open_batch": graph.dynamic_batch and carries_batch(t, graph.example_inputs),
            "open_axes": as_json([a for a in graph.open_axes if a.tensor == number]),
        }
        for number, (name, t) in enumerate(zip(names, given, strict=True))
    ]


def budget_of(build: Build) -> dict[str, Any]:
    """What was asked for, predicted, and certified by measuring; `certified` is None where nothing could be."""
    plan, found, budget = build.planned, build.found, build.recipe.prune.budget
    kept = kept_of(build)
    quality = {"bounds": bounds_of(build, kept), **({} if kept is None else {"quality": kept.to_json()})}
    sound = kept is None or kept.kept
    if found is None:
        remain = plan.macs_after / plan.macs_before
        return {
            "kind": "macs",
            "requested": budget.macs,
            "predicted": remain,
            "certified": remain,
            "met": sound and budget.macs is not None and plan.macs_after <= budget.macs * plan.macs_before,
            **quality,
        }
    goal, certificate = found.goal(budget), build.certificate
    assert certificate is not None, "stage 'measure' judges every budget of time"
    predicted = found.predicted_ms
    if predicted is not None:
        predicted = found.dense_ms / predicted if budget.speedup is not None else predicted * found.tail
    return {
        "kind": budget.kind,
        "requested": goal.requested,
        "quantile": budget.quantile,
        "setting": asdict(found.setting),
        "dense_ms": found.dense_ms,
        "importance": found.importance,
        "dropped": list(plan.dropped),
        "objective": found.objective,
        "judged_by": found.judged_by,
        "pool": [asdict(entry) for entry in found.pool],
        "judged": None if found.judged is None else found.judged.to_json(),
        "cut": found.cut,
        "predicted": predicted,
        "artifact": certificate.artifact,
        "measured": certificate.measured,
        "certified": certificate.bound,
        "met": certificate.met if sound else False,
        "remark": found.remark,
        "doubt": certificate.doubt,
        **quality,
    }


def sparse_of(build: Build) -> dict[str, Any]:
    """What was decided about the sparse model, and how it compares with the dense int8 form of the same weights."""
    if not build.sparse:
        return {}
    document = {**build.sparse, **_patterns(build)}
    timings = {t.artifact.name: t for t in build.timings if t.runtime == "openvino"}
    sparse, dense = timings.get("sparse int8"), timings.get("pruned int8")
    if sparse is None or dense is None:
        return document
    found = compare(sparse, dense, floor=build.noise_floor or 0.0, seed=build.recipe.seed)
    return {**document, "against_dense": asdict(found)}


def _patterns(build: Build) -> dict[str, Any]:
    """Each layer's pattern, and what was predicted where it was chosen by prediction."""
    given = {} if build.zeros is None else {layer.name: layer.pattern for layer in build.zeros.layers}
    assigned = {} if build.patterns is None else build.patterns.to_json()
    filled = {layer["name"]: layer for layer in assigned.get("layers", ())}
    layers = []
    for layer in build.sparse["layers"]:
        found = filled.get(layer["name"], {})
        parameter = found.get("parameter", layer["name"]).removesuffix(".weight")
        layers.append(
            {
                **layer,
                "pattern": given.get(parameter, DENSE),
                "predicted_us": found.get("sparse_us") if found else None,
            }
        )
    if not filled:
        return {"layers": layers}
    names = ("dense_ms", "predicted_ms", "budget_ms", "budget", "kept", "reference", "reference_kept", "rates_error")
    return {"layers": layers, "assigned": {name: assigned[name] for name in names}}


def warnings_of(build: Build) -> tuple[str, ...]:
    """What was said on the way, and what the numbers say now."""
    found = list(build.remarks)
    found += [] if build.tried is None else build.tried.remarks(build.environments)
    if build.data is None:
        found.append(
            "no --data: int8 ranges come from random noise and nothing was fine-tuned, so only the timings and the "
            "exactness checks of this build mean something"
        )
    recovery = build.recovery
    metric, dense = recovery.metric or ACCURACY, recovery.accuracy_dense or 0.0
    drop = metric.lost(dense, dense if recovery.accuracy_recovered is None else recovery.accuracy_recovered)
    if drop > 1.0:
        went = "fell" if metric.higher_is_better else "rose"
        counted = f"{drop:.1f} {'%' if metric.points is None else 'points'}"
        shown = f"{dense:.1f} %" if metric.unit == "%" else f"{dense:.4g}"
        more = fewer_zeros(build.recipe) or f"a {_MORE[build.recipe.prune.budget.kind]}"
        found.append(
            f"{metric.name} {went} by {counted} (dense {shown}); "
            f"recover it with more --epochs, or keep more with {more}"
        )
    return tuple(dict.fromkeys(found))


def _settings(build: Build) -> dict[str, Any]:
    recipe, plan = build.recipe, build.planned
    return {
        "criterion": plan.criterion,
        "scope": plan.scope,
        "step": plan.step,
        "epochs": 0,
        "threads": build.threads,
        **({} if build.tried is None else {"setting_tried": build.tried.to_json()}),
        "data": build.data.name if build.data is not None else None,
        "seed": recipe.seed,
        "runtime_settings": {t.runtime: t.settings for t in build.timings},
        **build.learning.to_json(),
        **({} if build.patterns is None else {"assign": build.patterns.to_json()}),
        **build.recovery.to_json(),
        "quantization": build.quantized.to_json(),
        "noise_floor": build.noise_floor,
        "layers_timed_in": build.layer_ms.get("", None),
    }


def _environment(build: Build) -> dict[str, Any]:
    return build.environment or build.clock.machine.environment()
