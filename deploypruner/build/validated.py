"""A finished build's file to ship, measured again here and now against limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploypruner.atomic import file_sha256
from deploypruner.build.fitting import Said
from deploypruner.build.folder import BuildFolder
from deploypruner.build.form_judge import FormJudge
from deploypruner.build.metric import own_metric
from deploypruner.build.sparsify_inputs import Inputs, sparsify_inputs
from deploypruner.errors import InputError
from deploypruner.latency.clock import Clock, timed_on
from deploypruner.measure import median_ms, quantile_ms, upper_bound_ms
from deploypruner.progress import Console, Progress, SilentProgress, percent
from deploypruner.recipe import Recipe
from deploypruner.recipe.data import DataSettings
from deploypruner.recipe.reading import read_recipe
from deploypruner.records import Artifact, Quality
from deploypruner.report import Report, read_report, units
from deploypruner.runtime import runtimes
from deploypruner.sources.classes import read_classes
from deploypruner.tasks.recognise import parse_tasks

_DENSE = "dense.fp32.onnx"


@dataclass(frozen=True)
class Limits:
    """What a build has to keep.

    Args:
        latency_ms: Largest latency, None for any.
        quantile: Of the latency: 0.5 is the median.
        accuracy: Least value of the metric, a share where it is in percent; None for any.
    """

    latency_ms: float | None = None
    quantile: float = 0.5
    accuracy: float | None = None


@dataclass(frozen=True)
class Checked:
    """One limit and what was found.

    Args:
        name: "latency", "latency (p95)", or the metric.
        found: In words.
        limit: In words.
        kept: Does it hold?
        doubt: Why nobody can tell, "" where somebody can.
    """

    name: str
    found: str
    limit: str
    kept: bool
    doubt: str = ""


@dataclass(frozen=True)
class _Run:
    """For how long something is timed, by what, and who is told how far that is."""

    seconds: float
    clock: Clock
    progress: Callable[[float, str], None]


@dataclass(frozen=True)
class Validated:
    """What was measured: the file, where, and every limit."""

    file: str
    runtime: str
    threads: int
    checks: tuple[Checked, ...]

    @property
    def kept(self) -> bool:
        """Do all limits hold?"""
        return all(check.kept for check in self.checks)


def validate(
    folder: Path,
    limits: Limits,
    *,
    data: str | None = None,
    seconds: float = 10.0,
    clock: Clock | None = None,
    progress: Progress | None = None,
    target: str | None = None,
) -> Validated:
    """Time the file to ship on the machine it is for, and judge it on validation data here.

    Args:
        folder: Finished build.
        limits: At least one.
        data: In place of the data that the build was made with.
        seconds: Of timing.
        clock: Says how long things take; this machine's where None.
        progress: Told how far it is.
        target: The machine; that of the build where None.

    Raises:
        InputError: No finished build, no file to ship, one that is not as it was built, or data without labels.
    """
    progress = progress or SilentProgress()
    report, root = read_report(folder), folder.parent if folder.name == "report.json" else folder
    deploy = _deploy(report, root)
    recipe = read_recipe(root / "recipe.toml", {})
    source = data or recipe.data.source
    inputs = _inputs(root, deploy, recipe, source) if source is not None else None
    if limits.accuracy is not None and inputs is None:
        raise InputError("--min-accuracy needs data, and the build has none", hint="pass --data DIR")
    checks = []
    if limits.latency_ms is not None:
        say = progress.say if isinstance(progress, Console) else lambda line: None
        where = target or recipe.target
        with timed_on(where, runtimes=[deploy["runtime"]], say=say) as there, percent(progress, "measure") as timing:
            run = _Run(seconds, there if there.machine.elsewhere else clock or there, timing)
            checks.append(_latency(root, deploy, limits, inputs=inputs, run=run))
    if limits.accuracy is not None and inputs is not None:
        progress.start(0, "accuracy")
        quality = _quality(root, deploy, recipe, inputs)
        progress.close()
        checks.append(_accuracy(quality, limits.accuracy))
    return Validated(deploy["file"], deploy["runtime"], deploy["threads"], tuple(checks))


def _deploy(report: Report, root: Path) -> dict[str, Any]:
    """The file to ship, which must be as it was built."""
    if not report.deploy:
        raise InputError(
            f"the build in {root} names no file to ship", hint="compile again; a build that failed a check has none"
        )
    known = BuildFolder(root).manifest().get("sha256", {})
    for name in report.deploy["files"]:
        path = root / name
        if not path.is_file():
            raise InputError(f"'{path}' is missing", hint="copy the build again, or compile again")
        if name in known and file_sha256(path) != known[name]:
            raise InputError(
                f"'{path}' is not the file that was built", hint="copy the build again, or compile again"
            )
    return report.deploy


def _inputs(root: Path, deploy: dict[str, Any], recipe: Recipe, source: str) -> Inputs:
    """Validation samples, prepared as the build prepared them, labels with the model's class numbers."""
    first = deploy["inputs"][0]
    given = recipe.data.settings
    settings = DataSettings(
        mean=_numbers(first["mean"]) or given.mean,
        std=_numbers(first["std"]) or given.std,
        channels=given.channels,
        resize=given.resize,
        interpolation=given.interpolation,
        val_fraction=given.val_fraction,
        limit=given.limit,
        augment=False,
        seed=given.seed,
    )
    classes = read_classes(recipe.data.classes) if recipe.data.classes is not None else tuple(deploy["classes"])
    said = Said(parse_tasks(recipe.measure.tasks), classes=classes)
    session = runtimes.get("onnxruntime")().open(root / _DENSE)
    return sparsify_inputs(session, source, settings, batch=None, said=said, judged=recipe.measure.samples)


def _latency(root: Path, deploy: dict[str, Any], limits: Limits, *, inputs: Inputs | None, run: _Run) -> Checked:
    environment = tuple(deploy.get("environment", {}).items())
    artifact = Artifact(deploy["artifact"], root / deploy["file"], "", "fp32", environment=environment)
    feeds = None if inputs is None else [array[:1] for array in inputs.timed]
    measured = run.clock.artifacts(
        [(artifact, deploy["runtime"])],
        threads=deploy["threads"],
        budget_s=run.seconds,
        feeds=feeds,
        progress=run.progress,
    )
    samples = measured.complete()[0].samples_ns
    assert limits.latency_ms is not None, "the caller has looked"
    at = limits.quantile
    value = median_ms(samples) if at == 0.5 else quantile_ms(samples, at)
    bound = upper_bound_ms(samples, at)
    name = "latency" if at == 0.5 else f"latency (p{100 * at:g})"
    found = f"{units.significant(value)} ms, 95 % bound {units.significant(bound)} ms"
    limit = f"<= {units.significant(limits.latency_ms)} ms"
    kept = bound is not None and bound <= limits.latency_ms
    doubt = ""
    if not kept and value is not None and value <= limits.latency_ms:
        doubt = measured.reason or "too few samples for that bound; give more --seconds"
    return Checked(name, found, limit, kept, doubt)


def _quality(root: Path, deploy: dict[str, Any], recipe: Recipe, inputs: Inputs) -> Quality:
    judge = FormJudge(
        root / _DENSE,
        "onnxruntime",
        inputs.judged,
        opened=lambda path, runtime: runtimes.get(runtime)().open(path, threads=deploy["threads"]),
        tasks=inputs.tasks,
        metric=own_metric(recipe.measure.metric),
    )
    return judge.quality(root / deploy["file"], deploy["runtime"])


def _accuracy(quality: Quality, least: float) -> Checked:
    if quality.accuracy is None:
        raise InputError("the data has no labels that accuracy can be counted on", hint="pass labelled --data DIR")
    metric, whole = quality.metric, 100.0 if quality.metric.unit == "%" else 1.0
    unit = f" {metric.unit}" if metric.unit else ""
    value = quality.accuracy
    kept = value >= whole * least if metric.higher_is_better else value <= whole * least
    known = units.give_or_take(quality.accuracy_ci, whole=1.0)
    found = f"{units.accuracy(value, metric.unit)}{known}{unit}, n = {quality.samples}"
    limit = f"{'>=' if metric.higher_is_better else '<='} {units.accuracy(whole * least, metric.unit)}{unit}"
    return Checked(metric.name, found, limit, kept)


def _numbers(values: list[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
