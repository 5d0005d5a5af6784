"""The chain of stages: run in order, timed, saved, resumed."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from deploypruner import __version__
from deploypruner.atomic import file_sha256
from deploypruner.build.answering import Runner
from deploypruner.build.fitting import require_better_than_chance
from deploypruner.build.folder import BuildFolder
from deploypruner.build.promise import require_met
from deploypruner.build.sparsity import check_layers, check_widths
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.stages.allocate import Allocate
from deploypruner.build.stages.assign import Assign
from deploypruner.build.stages.export import Export
from deploypruner.build.stages.learn import Learn
from deploypruner.build.stages.load import Load
from deploypruner.build.stages.measure import Measure
from deploypruner.build.stages.quantize import Quantize
from deploypruner.build.stages.recover import Recover
from deploypruner.build.stages.remove import Remove
from deploypruner.build.stages.report import WriteReport
from deploypruner.build.stages.score import Score
from deploypruner.build.stages.sparse import Sparse
from deploypruner.build.stages.trace import Trace
from deploypruner.build.stages.verify import Verify
from deploypruner.build.state import Build
from deploypruner.errors import BudgetError, InputError, RecipeError, VerificationError
from deploypruner.prune.allocate import allocate, reachable
from deploypruner.prune.remove import require
from deploypruner.recipe import BUDGETS
from deploypruner.sources.data import content_fingerprint

CHAIN: tuple[type[Stage], ...] = (
    *(Load, Trace, Score, Allocate, Learn, Remove, Assign, Recover),
    *(Quantize, Export, Sparse, Verify, Measure, WriteReport),
)
_MARKS = stage_file("finished.json")
_START_OVER = "leave out --resume to start over"
# Keys of the recipe that a resumed build may change -> the first stage whose result depends on them.
_CHANGEABLE: dict[str, str] = {
    **{f"prune.{name}": Allocate.name for name in BUDGETS},
    **dict.fromkeys(("measure.precision", "measure.accuracy_drop", "search.minutes"), Allocate.name),
    "recover.settings.lr": Recover.name,  # after training that diverged
}

_CONTENT = "data content"

Say = Callable[[str], None]


def run(build: Build, *, resume: bool, say: Say) -> Build:
    """Run every stage.

    Args:
        build: Recipe, folder and what the Python API gave; everything else empty.
        resume: Continue the build in the folder instead of replacing it.
        say: Called with one line per finished stage that had something to do.

    Returns:
        The finished build.

    Raises:
        RecipeError: The build to resume was made by another recipe.
        BudgetError: The budget is out of reach; reachable.json says what is in reach. An earlier build stays.
        VerificationError: Two forms of the model disagree; everything is written all the same.
        DeployPrunerError: Whatever a stage finds wrong; finished files stay.
    """
    try:
        return _run(build, resume=resume, say=say)
    finally:
        build.folder.release()


def _run(build: Build, *, resume: bool, say: Say) -> Build:
    marks: dict[str, Any] = {}
    resumable = True  # until the first saved stage that has to run again: later files came from its old result
    for stage_class in CHAIN:
        stage = stage_class()
        started = time.perf_counter()
        finished = resumable and _is_finished(build.folder, stage, marks)
        if stage.saves and not finished and resumable:
            _discard_from(build.folder, stage_class)
        resumable = resumable and (finished or not stage.saves)
        build = stage.restore(build) if finished else stage.run(build)
        seconds = time.perf_counter() - started
        if stage.saves and not finished:
            _mark(build.folder, stage, marks, seconds)
        if finished:
            seconds = marks["stages"][stage.name]["seconds"]
        build = replace(build, seconds=(*build.seconds, (stage.name, seconds)))
        note = stage.document(build)
        if note is not None:
            say(f"{stage.name:9} {'(done before)' if finished else f'{seconds:6.1f} s'}  {note}".rstrip())
        _require_sound(stage, build)
        if stage.name == Trace.name:
            check_layers(build)
            _require_reachable(build)
            _require_known_labels(build)
            marks = _open_folder(build, resume=resume)
        if stage.name == Allocate.name:
            check_widths(build)
    failed = [c for c in build.checks if not c.passed]
    if failed:
        first = failed[0]
        raise VerificationError(
            f"{first.name}: max |difference| {first.max_abs_diff:.2e}, allowed {first.tolerance:.2e} {first.detail}"
            + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""),
            hint=f"{build.folder.path('report.json')} lists every check; do not deploy these files",
            finished=True,
        )
    require_met(build)
    return build


def _require_sound(stage: Stage, build: Build) -> None:
    """A wrong graph or a wrong removal makes everything after it worthless: stop at once."""
    if stage.name in ("trace", "remove"):
        require(build.checks)


def _require_known_labels(build: Build) -> None:
    """Refuse labels that the dense model knows nothing of, before anything is trained on them."""
    if build.data is not None and build.metric is None and not build.recipe.data.allow_chance:
        runner = Runner(build.traced.module, build.traced.example_inputs)
        require_better_than_chance(build.data, runner, build.tasks)


def _require_reachable(build: Build) -> None:
    """Refuse a budget out of reach before an earlier build is replaced, and save what can be reached."""
    graph, recipe = build.traced, build.recipe.prune
    budget = recipe.budget
    if budget.macs is None:  # milliseconds are for `allocate` to find out
        return
    least, dense = reachable(graph, recipe.step, recipe.constraints), graph.costs.macs()
    if budget.macs == 1 or least <= budget.macs * dense:
        return
    try:
        # Whatever the scores: this only finds the words for what is known already.
        scores = {group.id: torch.zeros(group.size) for group in graph.groups}
        allocate(graph, scores, budget, criterion="", step=recipe.step, constraints=recipe.constraints)
    except BudgetError as error:
        document = {"message": error.message, "hint": error.hint}
        numbers = {"requested_macs": budget.macs, "reachable_macs": least / dense, "step": recipe.step}
        # The budget is what the user has to hear about, also where nothing can be saved.
        with suppress(InputError):
            build.folder.prepare()
            build.folder.write_json("reachable.json", {**document, **numbers})
        raise


# ---------------------------------------------------------------------- resume


def _open_folder(build: Build, *, resume: bool) -> dict[str, Any]:
    """Prepare the folder once the inputs are known to be good, so that bad input costs nobody an old build."""
    folder = build.folder
    folder.prepare()
    folder.require_apart(build.recipe.model.source, build.recipe.model.weights, build.recipe.data.source)
    recipe = _fingerprint(build)
    if resume and folder.has(_MARKS):
        marks = _for_changes(_read_marks(folder), recipe)
        _same_recipe(folder, marks["recipe"], recipe)
        folder.discard("reachable.json")
        return marks
    if resume and any(folder.root.glob("*.json")):
        raise InputError(f"{folder.root} holds nothing to resume", hint="leave out --resume")
    folder.clear()
    marks = {"recipe": recipe, "stages": {}}
    folder.write_json(_MARKS, marks)
    return marks


def _discard_from(folder: BuildFolder, stage: type[Stage]) -> None:
    """Delete what this stage and those after it once made: where they now make nothing, nothing may be left of it.

    All at once, because some make files of later stages early: the dense model that a budget of time is measured by.
    """
    place = CHAIN.index(stage)
    earlier = {name for cls in CHAIN[:place] for name in cls.saves}
    for name in {name for cls in CHAIN[place:] for name in cls.saves} - earlier:
        folder.discard(name)


def _read_marks(folder: BuildFolder) -> dict[str, Any]:
    """What earlier runs finished.

    Raises:
        InputError: The file is damaged, or another version wrote it.
    """
    marks: Any = folder.read_json(_MARKS, hint=_START_OVER)
    sound = (
        isinstance(marks, dict)
        and isinstance(marks.get("recipe"), dict)
        and isinstance(marks.get("stages"), dict)
        and all(
            isinstance(mark, dict)
            and isinstance(mark.get("seconds"), int | float)
            and isinstance(mark.get("sha256"), dict)
            for mark in marks["stages"].values()
        )
    )
    if not sound:
        raise InputError(f"{folder.path(_MARKS)} is damaged", hint=_START_OVER)
    return dict(marks)


def _mark(folder: BuildFolder, stage: Stage, marks: dict[str, Any], seconds: float) -> None:
    """Record that `stage` is finished, and forget what later stages once made of its old result."""
    names = [cls.name for cls in CHAIN]
    earlier = names[: names.index(stage.name)]
    marks["stages"] = {name: mark for name, mark in marks["stages"].items() if name in earlier}
    marks["stages"][stage.name] = {"seconds": seconds, "sha256": _hashes(folder, stage)}
    folder.write_json(_MARKS, marks)


def _for_changes(marks: dict[str, Any], recipe: dict[str, Any]) -> dict[str, Any]:
    """The same marks where nothing changed that may; otherwise without what followed from the old values.

    So a build goes on with another budget, and its scores and the latency table are used again.
    """
    changed = [key for key in _CHANGEABLE if marks["recipe"].get(key) != recipe.get(key)]
    if not changed:
        return marks
    names = [cls.name for cls in CHAIN]
    earlier = names[: min(names.index(_CHANGEABLE[key]) for key in changed)]
    return {
        "recipe": {**marks["recipe"], **{key: recipe.get(key) for key in changed}},
        "stages": {name: mark for name, mark in marks["stages"].items() if name in earlier},
    }


def _same_recipe(folder: BuildFolder, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key == _CONTENT, key)):
        if theirs.get(key) == ours.get(key):
            continue
        if key == _CONTENT:
            raise InputError(
                f"data '{ours.get('data')}' changed since the build in {folder.root} was begun",
                hint="leave out --resume to start over",
            )
        raise RecipeError(
            f"the build in {folder.root} was made with {key} = {theirs.get(key)!r}, this command says "
            f"{ours.get(key)!r}",
            hint="repeat the original options, or leave out --resume to start over",
        )


def _fingerprint(build: Build) -> dict[str, Any]:
    """Everything that decides the result, flat, so that a difference can be named."""
    flat: dict[str, Any] = {"version": __version__, "model sha256": build.sha256}
    _flatten(dataclasses.asdict(build.recipe), "", flat)
    if build.data is not None:
        flat["data"] = build.data.name
        flat["data samples"] = [build.data.train.samples, build.data.val.samples]
        given = build.given.data if build.given.data is not None else build.recipe.data.source
        flat[_CONTENT] = content_fingerprint(given)
    # JSON has no infinity, which is a fine value for a clipping norm.
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in flat.items()}
    return dict(json.loads(json.dumps(finite, default=str)))


def _flatten(value: dict[str, Any], place: str, into: dict[str, Any]) -> None:
    for key, item in value.items():
        if isinstance(item, dict):
            _flatten(item, f"{place}{key}.", into)
        else:
            into[f"{place}{key}"] = item


def _is_finished(folder: BuildFolder, stage: Stage, marks: dict[str, Any]) -> bool:
    """Did an earlier run finish this stage, and are its files still what it wrote?"""
    mark = marks.get("stages", {}).get(stage.name)
    if not stage.saves or mark is None or not all(folder.has(name) for name in mark["sha256"]):
        return False
    return bool(mark["sha256"] == _hashes(folder, stage))


def _hashes(folder: BuildFolder, stage: Stage) -> dict[str, str]:
    return {name: file_sha256(folder.path(name)) for name in stage.saves if folder.has(name)}
