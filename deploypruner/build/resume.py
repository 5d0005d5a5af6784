"""What an earlier run finished, and whether this run may go on from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from deploypruner import __version__
from deploypruner.atomic import file_sha256
from deploypruner.build.folder import BuildFolder
from deploypruner.build.reach import REACHABLE
from deploypruner.build.stage import Stage, stage_file
from deploypruner.build.state import Build
from deploypruner.errors import InputError, RecipeError
from deploypruner.recipe.reading import flat
from deploypruner.sources.data import content_fingerprint

_MARKS = stage_file("finished.json")
_START_OVER = "leave out --resume to start over"
# Of a finished build.
_REPLACE = "leave out --resume and add --overwrite to start over"
_OTHERWISE = "add --overwrite to replace it once the new one is finished, or make another one with --out"
_CONTENT = "data content"

Order = Sequence[type[Stage]]


class Marks:
    """Which stages of a build are finished, in `stages/finished.json`.

    Args:
        folder: Of the build.
        order: Of its stages.
        document: Fingerprint of the recipe, and for each finished stage its seconds and the sha256 of its files.
    """

    def __init__(self, folder: BuildFolder, order: Order, document: dict[str, Any]) -> None:
        self._folder, self._order, self._document = folder, order, document

    def write(self) -> None:
        """Keep them."""
        self._folder.write_json(_MARKS, self._document)

    def finished(self, stage: Stage) -> bool:
        """Did an earlier run finish this stage, and are its files still what it wrote?

        Files that several stages may write count for those that found them at their end.
        """
        mark = self._document["stages"].get(stage.name)
        if not stage.saves or mark is None:
            return False
        found = self._hashes(stage)
        return all(found.get(name) == sha256 for name, sha256 in mark["sha256"].items())

    def seconds(self, stage: Stage) -> float:
        """How long a finished stage took."""
        return float(self._document["stages"][stage.name]["seconds"])

    def add(self, stage: Stage, seconds: float) -> float:
        """Record that `stage` is finished, and forget what later stages once made of its old result."""
        self._forget_from(type(stage))
        self._document["stages"][stage.name] = {"seconds": seconds, "sha256": self._hashes(stage)}
        self.write()
        return seconds

    def follow(self, recipe: dict[str, Any]) -> str:
        """Forget what followed from values that a stage lets change and that this recipe changes.

        So a build goes on with another budget, and its scores and the latency table are used again.

        Returns:
            The first of them on which more depends than the measurement at the end, in words; "" where none is.

        Raises:
            RecipeError: Another value differs.
            InputError: The data differs.
        """
        theirs, changed = self._document["recipe"], ""
        for key in sorted(theirs.keys() | recipe.keys()):
            if theirs.get(key) == recipe.get(key) or not any(stage.lets_change(key) for stage in self._order):
                continue
            first = next((stage for stage in self._order if stage.depends_on(key)), None)
            if first is not None:
                self._forget_from(first)
            if first is not None and first.saves:
                changed = changed or f"{key} = {theirs.get(key)!r}; this command says {recipe.get(key)!r}"
            theirs = {**theirs, key: recipe.get(key)}
        self._document["recipe"] = theirs
        _same_recipe(self._folder, theirs, recipe)
        return changed

    def _forget_from(self, stage: type[Stage]) -> None:
        earlier = {cls.name for cls in self._order[: self._order.index(stage)]}
        marks = self._document["stages"]
        self._document["stages"] = {name: mark for name, mark in marks.items() if name in earlier}

    def _hashes(self, stage: Stage) -> dict[str, str]:
        folder = self._folder
        return {name: file_sha256(folder.path(name)) for name in stage.saves if folder.has(name)}


def open_folder(build: Build, order: Order, *, resume: bool, overwrite: bool) -> Marks:
    """Prepare the folder once the inputs are known to be good.

    Args:
        build: So far.
        order: Of all stages.
        resume: Go on with the build in the folder instead of replacing it.
        overwrite: Whether a finished build may become another one.

    Raises:
        InputError: The folder cannot be taken, holds nothing to resume, or lies among what is read; or a finished
            build would become another one.
        RecipeError: The build to resume was made by another recipe.
    """
    folder = build.folder
    folder.prepare()
    folder.require_apart(build.recipe.model.source, build.recipe.model.weights, build.recipe.data.source)
    recipe = _fingerprint(build)
    begun = _begun(folder) if resume else None
    if begun is not None:
        marks = Marks(folder, order, _read(begun))
        changed = marks.follow(recipe)
        if changed and folder.replaces is not None and not overwrite:
            unfinished = f"repeat the original options, or delete {folder.root} to go on with {folder.replaces.root}"
            raise InputError(
                f"{begun.root} holds {'an un' if begun is folder else 'a '}finished build, made with {changed}",
                hint=unfinished if begun is folder else _OTHERWISE,
            )
        if begun is not folder:
            folder.adopt()
        folder.discard(REACHABLE)
        return marks
    known = folder if folder.replaces is None else folder.replaces
    if resume and any(known.root.glob("*.json")):
        raise InputError(f"{known.root} holds nothing to resume", hint=_over(folder))
    folder.begin_anew()
    marks = Marks(folder, order, {"recipe": recipe, "stages": {}})
    marks.write()
    return marks


def begun(folder: BuildFolder) -> bool:
    """Is there a build that `--resume` goes on with?"""
    return _begun(folder) is not None


def _begun(folder: BuildFolder) -> BuildFolder | None:
    """The folder with what a build left to go on with: this one, or the finished one that it replaces."""
    if folder.has(_MARKS):
        return folder
    return folder.replaces if folder.replaces is not None and folder.replaces.has(_MARKS) else None


def _over(folder: BuildFolder) -> str:
    """How to start over."""
    if folder.inner:  # which holds builds that nobody said may go
        return "name another folder with --out"
    return _START_OVER if folder.replaces is None and not folder.finished else _REPLACE


def _read(folder: BuildFolder) -> dict[str, Any]:
    """What earlier runs finished.

    Raises:
        InputError: The file is damaged, or another version wrote it.
    """
    marks: Any = folder.read_json(_MARKS, hint=_over(folder))
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
        raise InputError(f"{folder.path(_MARKS)} is damaged", hint=_over(folder))
    return dict(marks)


def _same_recipe(folder: BuildFolder, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key == _CONTENT, key)):
        if theirs.get(key) == ours.get(key):
            continue
        if key == _CONTENT:
            raise InputError(
                f"data '{ours.get('data')}' changed since the build in {folder.root} was begun", hint=_over(folder)
            )
        raise RecipeError(
            f"the build in {folder.root} was made with {key} = {theirs.get(key)!r}, this command says "
            f"{ours.get(key)!r}",
            hint=f"repeat the original options, or {_over(folder)}",
        )


def _fingerprint(build: Build) -> dict[str, Any]:
    """Everything that decides the result, flat, so that a difference can be named."""
    found: dict[str, Any] = {"version": __version__, "model sha256": build.sha256, **flat(build.recipe)}
    if build.clock.machine.elsewhere:  # another machine may answer at the address now
        found["machine"] = build.clock.machine.fingerprint
    if build.data is not None:
        found["data"] = build.data.name
        found["data samples"] = [build.data.train.samples, build.data.val.samples]
        given = build.given.data if build.given.data is not None else build.recipe.data.source
        found[_CONTENT] = content_fingerprint(given)
    # JSON has no infinity, which is a fine value for a clipping norm.
    finite = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
    return dict(json.loads(json.dumps(finite, default=str)))
