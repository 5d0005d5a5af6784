"""A finished build timed again: nothing of it is made anew, and what its report says about time is renewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from deploypruner.build.deploy import deployed_again
from deploypruner.build.folder import BuildFolder
from deploypruner.build.promise import require_certified
from deploypruner.build.timed import INPUTS, RUN, in_environments, keep_run, longer, make_jobs, timing_files
from deploypruner.errors import BudgetError, InputError
from deploypruner.latency.clock import Clock, current_clock, timed_on
from deploypruner.logbook import LOG
from deploypruner.measure import Job, Measured, find_doubts, make_rows, read_timing
from deploypruner.measure.elsewhere import package_of
from deploypruner.measure.statistics import compare
from deploypruner.progress import Console, Progress, SilentProgress, percent
from deploypruner.reading import read_json
from deploypruner.recipe import Recipe
from deploypruner.recipe.reading import read_recipe
from deploypruner.recipe.sections import OPEN
from deploypruner.records import Artifact, Row, Setting
from deploypruner.report import Report, read_report, render_html, render_json
from deploypruner.report.units import is_refused, quality_sentence
from deploypruner.search.certify import Certificate, certify
from deploypruner.search.goal import Goal

# Of a row: what a measurement of time says.
_TIMES = (
    *("threads", "median_ms", "p95_ms", "p99_ms", "samples", "peak_rss_bytes"),
    *("ratio", "ratio_ci", "verdict", "same_precision"),
)


@dataclass(frozen=True)
class AgainRequest:
    """What to time.

    Args:
        folder: Of a finished build.
        seconds: Of rounds after which none starts.
        threads: Of every runtime; as before where None.
        runtimes: Registered names; those of the report where None.
        progress: Told how far it is.
        clock: Says how long things take, where the machine is this one.
        target: The machine; that of the build where None.
    """

    folder: Path
    seconds: float = 60.0
    threads: int | None = None
    runtimes: Sequence[str] | None = None
    progress: Progress = field(default_factory=SilentProgress)
    clock: Clock = field(default_factory=current_clock)
    target: str | None = None


def measure_again(request: AgainRequest) -> Report:
    """Time a finished build's files side by side, and renew its samples, report.json and report.html.

    Rows of the named runtimes are replaced; those of others, and every accuracy, stay as they were. The samples are
    those of the build's own measurement: one real input, where the build kept it.

    Args:
        request: What to time, how long.

    Raises:
        InputError: No finished build, or a file of it is gone.
        MeasureError: Nothing of it can be run.
    """
    folder = BuildFolder(request.folder)
    report, recipe = _finished(folder)
    say = request.progress.say if isinstance(request.progress, Console) else lambda line: None
    with timed_on(request.target or recipe.target, runtimes=request.runtimes or (), say=say) as there:
        clock = there if there.machine.elsewhere else request.clock
        return _measured_again(replace(request, clock=clock), folder, report, recipe)


def _measured_again(request: AgainRequest, folder: BuildFolder, report: Report, recipe: Recipe) -> Report:
    """The same with the clock of the machine it is timed on."""
    machine = request.clock.machine
    folder.prepare()
    if isinstance(request.progress, Console):
        request.progress.log.keep_in(folder.claim(LOG), instead="copy the build to a folder that can be written to")
    try:
        jobs = kept_jobs(folder, report, request.runtimes)
        if machine.elsewhere:  # which has no torch
            jobs = [job for job in jobs if machine.version(package_of(job[1]))]
        threads, seen = request.threads or _threads(report, recipe), machine.environment()
        with percent(request.progress, "measure") as progress:
            measured = request.clock.artifacts(
                jobs,
                threads=threads,
                budget_s=request.seconds,
                seed=recipe.seed,
                progress=progress,
                **kept_feeds(folder),
            )
        warnings, noise = _warnings(report, measured), _noise(folder, measured, seen, request)
        renewed = _renewed(report, measured, folder=folder, recipe=recipe)
        renewed = replace(renewed, target=machine.to_json(), environment=seen)
        renewed = replace(renewed, warnings=(*renewed.warnings, *warnings), noise=tuple(noise))
        renewed = replace(renewed, deploy=deployed_again(folder, renewed))
        keep_run(folder, measured, seconds=request.seconds, warnings=[*warnings, *noise])
        _write(folder, renewed)
    finally:
        folder.release()
    return renewed


def require_promised(report: Report, folder: Path) -> None:
    """Refuse a build whose budget is not certified, once its report is shown.

    Raises:
        BudgetError: It is not, or its quality is not kept.
    """
    budget = report.budget
    if is_refused(budget):
        raise BudgetError(
            f"{budget['quality']['artifact']} is refused: {quality_sentence(budget['quality'])}",
            hint="time has nothing to do with it: compile again with a milder budget or more --epochs",
            finished=True,
        )
    if budget.get("kind") in ("latency", "speedup"):
        found = Certificate(
            artifact=str(budget.get("artifact", "the pruned model")),
            measured=budget.get("measured"),
            bound=budget.get("certified"),
            met=budget.get("met"),
            doubt=str(budget.get("doubt", "")),
        )
        require_certified(found, read_recipe(folder / "recipe.toml", {}).prune.budget, folder)


def kept_jobs(folder: BuildFolder, report: Report, names: Sequence[str] | None = None) -> list[Job]:
    """The files of the report's rows, in their order; of a runtime that has none, all that it opens.

    Raises:
        InputError: A file is gone, or no samples were kept.
    """
    artifacts: dict[tuple[str, str], Artifact] = {}
    for name in timing_files(folder):
        timing = read_timing(folder.path(name))
        artifacts[timing.artifact.name, timing.runtime] = _located(timing.artifact, folder)
    rows = [(row.name, row.runtime) for row in report.rows if (row.name, row.runtime) in artifacts]
    if not rows:
        raise InputError(
            f"{folder.root} holds no timings to repeat", hint="`compile --resume` with its options measures it"
        )
    known = dict.fromkeys(runtime for _, runtime in rows)
    jobs = [(artifacts[row], row[1]) for row in rows if names is None or row[1] in names]
    files = dict.fromkeys(artifacts[row] for row in rows)
    return [*jobs, *in_environments(make_jobs(files, [name for name in names or () if name not in known]), {})]


def kept_feeds(folder: BuildFolder) -> dict[str, Any]:
    """What to call the files with: what they were called with before, else random values of the example's sizes."""
    if folder.has(INPUTS):
        with np.load(folder.path(INPUTS)) as arrays:
            return {"feeds": [arrays[name] for name in sorted(arrays.files, key=lambda name: int(name[4:]))]}
    inputs = folder.manifest().get("inputs") or []
    shapes = {str(one["name"]): tuple(one["example"]) for one in inputs if one.get("open_axes")}
    return {"input_shapes": shapes} if shapes else {}


def _finished(folder: BuildFolder) -> tuple[Report, Recipe]:
    folder.require_finished()
    return read_report(folder.root), read_recipe(folder.path("recipe.toml"), {})


def _threads(report: Report, recipe: Recipe) -> int:
    """As the recipe says, or as the files were timed where it leaves that open."""
    given = recipe.measure.threads
    return report.rows[0].threads if given == OPEN else given


def _located(artifact: Artifact, folder: BuildFolder) -> Artifact:
    """The same where the folder is now: builds are moved, and were made elsewhere."""
    path = artifact.path
    tries = [
        folder.path(name) for name in (str(path), path.name, f"stages/{path.name}") if not Path(name).is_absolute()
    ]
    found = next((place for place in tries if place.is_file()), None)
    if found is None:
        raise InputError(
            f"{folder.root} lacks {path.name}, which its report is about", hint="copy the whole build again"
        )
    return replace(artifact, path=found)


def _noise(folder: BuildFolder, measured: Measured, machine: dict[str, Any], request: AgainRequest) -> list[str]:
    """What casts doubt on the times of this run."""
    return find_doubts(measured, machine, longer=longer(folder.root, request.seconds))


def _warnings(report: Report, measured: Measured) -> list[str]:
    """What else there is to know about this run."""
    rows = [(timing.artifact.name, timing.runtime) for timing in measured.timings]
    found = [failure.message for failure in measured.failures]
    setting, threads = report.budget.get("setting"), measured.timings[0].threads
    if isinstance(setting, dict) and setting["threads"] != threads:
        found.append(f"the budget is about {Setting.from_json(setting)}: what was certified there stays")
    known = [(row.name, row.runtime) for row in report.rows]
    left = [f"'{name}' on {runtime}" for name, runtime in known if (name, runtime) not in rows]
    if left:
        found.append(f"of an earlier run, whose milliseconds do not compare with these: {', '.join(left)}")
    unjudged = [f"'{name}' on {runtime}" for name, runtime in rows if (name, runtime) not in known]
    if unjudged:
        found.append(f"timed and not judged: {', '.join(unjudged)}")
    return found


def _renewed(report: Report, measured: Measured, *, folder: BuildFolder, recipe: Recipe) -> Report:
    """The report with this run's times, and without what was said about the one before."""
    threads = measured.timings[0].threads
    rows = make_rows(measured.timings, [None] * len(measured.timings), floor=measured.floor, seed=recipe.seed)
    budget = report.budget
    if isinstance(budget.get("setting"), dict):
        setting = Setting.from_json(budget["setting"])
        if setting.threads == threads and any(timing.runtime == setting.runtime for timing in measured.timings):
            budget = _certified(budget, measured, setting, recipe=recipe, name=_searched(folder))
    said = set(_earlier(folder).get("warnings", ()))
    told = {timing.runtime: timing.settings for timing in measured.timings}
    settings = {
        **report.settings,
        "threads": threads,
        "noise_floor": measured.floor,
        "runtime_settings": {**report.settings.get("runtime_settings", {}), **told},
    }
    return replace(
        report,
        settings=settings,
        budget=budget,
        rows=_replaced(report.rows, rows),
        warnings=tuple(text for text in report.warnings if text not in said),
        sparse=_against_dense(report.sparse, measured, seed=recipe.seed),
    )


def _replaced(rows: Sequence[Row], new: Sequence[Row]) -> tuple[Row, ...]:
    """Every row with its new times; rows of runtimes that are new come last."""
    found = {(row.name, row.runtime): row for row in new}
    kept = [_timed(row, found.pop((row.name, row.runtime), row)) for row in rows]
    return (*kept, *found.values())


def _timed(row: Row, times: Row) -> Row:
    return replace(row, **{name: getattr(times, name) for name in _TIMES})


def _certified(
    budget: Mapping[str, Any], measured: Measured, setting: Setting, *, recipe: Recipe, name: str
) -> dict[str, Any]:
    """The budget as this run has it."""
    goal = Goal(recipe.prune.budget, float(budget["dense_ms"]))
    found = certify(goal, setting, measured, seed=recipe.seed, artifact=name)
    met = False if is_refused(dict(budget)) else found.met
    about = {"measured": found.measured, "certified": found.bound, "met": met, "doubt": found.doubt}
    return {**budget, **about, "artifact": found.artifact}


def _searched(folder: BuildFolder) -> str:
    """Name of the artifact that the search says the budget is about, "" where it says none."""
    search = "stages/search.json"
    document = folder.read_json(search) if folder.has(search) else None
    return str(document.get("artifact", "")) if isinstance(document, dict) else ""


def _against_dense(sparse: dict[str, Any], measured: Measured, *, seed: int) -> dict[str, Any]:
    timings = {timing.artifact.name: timing for timing in measured.timings if timing.runtime == "openvino"}
    if "against_dense" not in sparse or not {"sparse int8", "pruned int8"} <= timings.keys():
        return sparse
    found = compare(timings["sparse int8"], timings["pruned int8"], floor=measured.floor, seed=seed)
    return {**sparse, "against_dense": asdict(found)}


def _earlier(folder: BuildFolder) -> dict[str, Any]:
    """What was said about the measurement that is replaced."""
    if not folder.has(RUN):
        return {}
    document = read_json(folder.path(RUN), what="measurement", hint="delete it")
    return document if isinstance(document, dict) else {}


def _write(folder: BuildFolder, report: Report) -> None:
    folder.write_text("report.json", render_json(report))
    folder.write_text("report.html", render_html(report))
    about = {name: value for name, value in folder.manifest().items() if name not in ("deploypruner", "sha256")}
    folder.write_manifest(about)
