"""The driver of a frontier: what the points share is done once, and one that fails costs no other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deploypruner.build import pipeline
from deploypruner.build.choices import check_choices
from deploypruner.build.common import Common, CommonRequest
from deploypruner.build.folder import BuildFolder
from deploypruner.build.register import stage_files
from deploypruner.build.resume import begun
from deploypruner.errors import BudgetError, DeployPrunerError, InputError, RecipeError
from deploypruner.frontier.asked import AskedPoint
from deploypruner.frontier.measured import TimedTogether, entries_of, time_together
from deploypruner.recipe import BUDGETS, Recipe
from deploypruner.recipe.reading import flat, overlay, read_recipe
from deploypruner.report import Report, read_report
from deploypruner.report.frontier import (
    Frontier,
    FrontierPoint,
    Status,
    frontier_html,
    frontier_json,
    frontier_svg,
)
from deploypruner.report.units import is_refused

KIND = "frontier"
BUILDS = "builds"
"""Folder of the points' builds."""

DOCUMENT, PAGE, PICTURE = "frontier.json", "frontier.html", "frontier.svg"
_KEYS = tuple(f"prune.{name}" for name in BUDGETS)


@dataclass(frozen=True, kw_only=True)
class FrontierRequest(CommonRequest):
    """What to build.

    Args:
        points: The budgets, the mildest first.
        longer: Says how to time for so many seconds.
    """

    points: Sequence[AskedPoint]
    longer: Callable[[float], str] = lambda seconds: f"resume=True with measure.seconds = {seconds:.0f} in the recipe"


@dataclass(frozen=True)
class _PointOutcome:
    """A point that was gone through, and its report where a whole build is there."""

    point: FrontierPoint
    report: Report | None
    error: DeployPrunerError | None


def frontier_folder(out: Path) -> BuildFolder:
    """The folder of a frontier, with builds of their own inside."""
    names = (*stage_files(), DOCUMENT, PAGE, PICTURE)
    return BuildFolder(out, KIND, names=names, inner=BUILDS)


def require_frontier_place(out: Path, *, resume: bool) -> BuildFolder:
    """The folder, where a frontier may be built in it.

    Raises:
        InputError: It holds a finished one, or what another command made.
    """
    folder = frontier_folder(out)
    folder.require_kind()
    if folder.finished and not resume:
        raise InputError(
            f"{out} holds a finished {KIND}, which is kept",
            hint="--resume adds points to it; --out names another folder",
        )
    if not resume and folder.path(BUILDS).is_dir() and any(folder.path(BUILDS).iterdir()):
        raise InputError(f"{out} holds a {KIND} that was begun", hint="--resume goes on; --out names another folder")
    return folder


def run_frontier(request: FrontierRequest) -> tuple[Frontier, DeployPrunerError | None]:
    """Build every point, time all artifacts together, and write frontier.json, frontier.html and frontier.svg.

    Returns:
        What was found, and the gravest error among the points, for the exit code; None where all are kept.

    Raises:
        DeployPrunerError: What the points share cannot be done: bad input, a folder that cannot be taken.
    """
    folder = require_frontier_place(request.out, resume=request.resume)
    first = overlay(request.recipe, request.points[0].overrides)
    check_choices(first, request.given)
    build = request.shared_build(folder, first)
    try:
        common = pipeline.begin(build, _KEYS, resume=request.resume, say=request.say)
        outcomes = [_run_point(request, point, common) for point in request.points]
        outcomes = [*outcomes, *_earlier(folder, {outcome.point.name for outcome in outcomes})]
        found = _finish(request, outcomes, common)
    finally:
        folder.release()
    return found, _gravest(outcomes)


def _gravest(outcomes: Sequence[_PointOutcome]) -> DeployPrunerError | None:
    """The gravest error; where too much quality is lost, its advice is for all such points, not for the first."""
    errors = [outcome.error for outcome in outcomes if outcome.error is not None]
    gravest = max(errors, key=lambda error: error.exit_code, default=None)
    refused = {
        o.error: o.report.budget["quality"]["lost"]
        for o in outcomes
        if o.error is not None and o.report is not None and is_refused(o.report.budget)
    }
    if gravest in refused:
        allow = "ask for less"  # where a loss is no number
        if None not in refused.values():
            allow = f"allow --accuracy-drop {math.ceil(max(refused.values())):g} in another --out"
        gravest.hint = f"train longer with --epochs, or {allow}; all builds are whole"
    return gravest


def _run_point(request: FrontierRequest, point: AskedPoint, common: Common) -> _PointOutcome:
    """Build one point, or find it built."""
    name = f"{BUILDS}/{point.name}"
    folder = BuildFolder(common.build.folder.path(name))
    recipe = overlay(request.recipe, point.overrides)
    request.say(f"point {point.name}: {point.budget}")
    if folder.finished:
        _require_same(folder, recipe, point)
        request.say("(done before)")
        return _outcome(point, name, folder, None)
    build = replace(common.build, recipe=recipe, folder=folder, remarks=(), seconds=())
    try:
        pipeline.run(build, resume=begun(folder), common=common, say=request.say)
    except DeployPrunerError as error:
        outcome = _outcome(point, name, folder, error)
        request.say(f"{outcome.point.status}: {error.message}")
        return outcome
    finally:
        common.take(folder)
    return _outcome(point, name, folder, None)


def _require_same(folder: BuildFolder, recipe: Recipe, point: AskedPoint) -> None:
    """A finished point has to be what this command would build; how long it is timed is no part of that.

    Raises:
        RecipeError: It was built otherwise.
    """
    theirs, ours = flat(read_recipe(folder.path("recipe.toml"), {})), flat(recipe)
    other = next((key for key in ours if ours[key] != theirs[key] and key != "measure.seconds"), None)
    if other is not None:
        raise RecipeError(
            f"point {point.name} in {folder.root} was built with {other} = {theirs[other]!r}, this command says "
            f"{ours[other]!r}",
            hint="repeat the original options, or name another folder with --out",
        )


def _outcome(point: AskedPoint, name: str, folder: BuildFolder, error: DeployPrunerError | None) -> _PointOutcome:
    """What became of a point, from its report where it has one: what broke a promise is whole all the same."""
    asked = str(point.budget)
    if not folder.finished:
        assert error is not None, "a build that ends without an error is finished"
        status: Status = "refused" if isinstance(error, BudgetError) else "failed"
        return _PointOutcome(FrontierPoint(point.name, asked, status, error.message, "", 0.0), None, error)
    report = read_report(folder.root)
    seconds = sum(stage.seconds for stage in report.stages)
    why = "" if error is None else error.message
    if error is None and not report.budget.get("met"):
        why = "more quality is lost than is allowed" if is_refused(report.budget) else "the budget is not certified"
        error = BudgetError(f"point {point.name}: {why}", finished=True)
    status = "kept" if error is None else "not kept"
    return _PointOutcome(FrontierPoint(point.name, asked, status, why, name, seconds), report, error)


def _earlier(folder: BuildFolder, done: set[str]) -> list[_PointOutcome]:
    """Points of an earlier run of this frontier that this one did not name: they stay in it."""
    if not folder.has(DOCUMENT):
        return []
    document = folder.read_json(DOCUMENT, hint="delete it")
    points = document.get("points", ()) if isinstance(document, dict) else ()
    found = []
    for entry in points:
        if not isinstance(entry, dict) or entry.get("name") in done or set(entry) != _POINT_FIELDS:
            continue
        point = FrontierPoint(**entry)
        inner = BuildFolder(folder.path(point.folder)) if point.folder else None
        whole = inner is not None and inner.finished
        if whole or not point.folder:
            found.append(_PointOutcome(point, read_report(folder.path(point.folder)) if whole else None, None))
    return found


_POINT_FIELDS = set(FrontierPoint.__dataclass_fields__)


def _finish(request: FrontierRequest, outcomes: Sequence[_PointOutcome], common: Common) -> Frontier:
    """Time everything together and write the files."""
    folder, recipe = common.build.folder, request.recipe
    reports = {o.point.name: (o.point.folder, o.report) for o in outcomes if o.report is not None}
    timed, seconds = TimedTogether((), 0.0, ()), 0.0
    notes = ["a row is dominated where another is at least as fast and as good, and better in one of the two"]
    if reports:
        started = request.clock.monotonic()
        entries = entries_of(folder, reports)
        request.say(f"timing {len(entries)} artifacts side by side")
        timed = time_together(
            entries,
            folder,
            threads=common.build.threads,
            seconds=recipe.measure.seconds,
            longer=request.longer(max(60.0, 3 * recipe.measure.seconds)),
            seed=recipe.seed,
            fed_by=BuildFolder(folder.path(next(iter(reports.values()))[0])),
            clock=request.clock,
            progress=request.progress,
        )
        seconds = request.clock.monotonic() - started
    report = next((report for _, report in reports.values()), None)
    found = Frontier(
        model=common.build.name,
        command=request.command,
        machine=_machine(report, common.build.threads),
        points=tuple(outcome.point for outcome in outcomes),
        rows=timed.rows,
        floor=timed.floor,
        notes=(*notes, *common.build.remarks, *timed.noise),
        seconds={**{name: common.seconds(name) for name in common.stages}, "measure": seconds},
    )
    _write(folder, found, common)
    return found


def _machine(report: Report | None, count: int) -> str:
    threads = f"{count} thread{'' if count == 1 else 's'}"
    return threads if report is None else f"{report.target.get('processor', '')}, {threads}"


def _write(folder: BuildFolder, found: Frontier, common: Common) -> None:
    folder.write_json(DOCUMENT, frontier_json(found))
    folder.write_text(PAGE, frontier_html(found))
    if drawn := frontier_svg(found.rows):
        folder.write_text(PICTURE, drawn)
    else:
        folder.discard(PICTURE)
    folder.write_manifest({"command": found.command, "model_sha256": common.build.sha256})
