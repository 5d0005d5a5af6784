"""Builds and recipes that note which of their fields a stage reads."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from deploypruner.build.stage import chain
from deploypruner.build.state import Build


@dataclasses.dataclass
class Seen:
    """What the stages of the builds in a block did.

    Args:
        keys: Stage -> keys of the recipe that it read.
        fields: Stage -> fields of the build that it read.
        gave: Stage -> fields of the build that it changed.
    """

    keys: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    fields: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    gave: dict[str, set[str]] = dataclasses.field(default_factory=dict)


def _copies() -> bool:
    """Is it `dataclasses.replace` that reads, or a check of the copy it makes?"""
    frame = sys._getframe(2)
    names = ("replace", "_replace", "__post_init__")
    return frame.f_code.co_name in names


def recorded(value: Any, place: str, note: Callable[[str], Any], *, deep: bool = True) -> Any:
    """A frozen dataclass's equal that calls `note` with the dotted key of each field that is read.

    Args:
        value: It may hold others of its kind.
        place: Prefix of its keys.
        note: Called at each reading.
        deep: Note the fields of those that it holds instead of the reading of these.
    """
    names = {field.name for field in dataclasses.fields(value)}
    held = {
        name: recorded(item, f"{place}{name}.", note) if deep and dataclasses.is_dataclass(item) else item
        for name, item in vars(value).items()
    }
    tables = {name for name in names if deep and dataclasses.is_dataclass(held[name])}

    class Recorded(type(value)):
        def __getattribute__(self, name: str) -> Any:
            if name == "__dict__" and not _copies():  # vars(settings)
                for leaf in names - tables:
                    note(f"{place}{leaf}")
            elif name in names and name not in tables and not _copies():
                note(f"{place}{name}")
            return object.__getattribute__(self, name)

    made = object.__new__(Recorded)
    for name, item in held.items():
        object.__setattr__(made, name, item)
    return made


@contextlib.contextmanager
def recording() -> Iterator[Seen]:
    """Note what every stage of the builds in this block reads and gives."""
    seen = Seen()
    with contextlib.ExitStack() as stack:
        for stage in chain():
            for way in ("run", "restore"):
                stack.enter_context(mock.patch.object(stage, way, _watched(seen, stage.name, getattr(stage, way))))
        yield seen


def _watched(seen: Seen, name: str, original: Callable[[Any, Build], Build]) -> Callable[[Any, Build], Build]:
    keys, fields, gave = (found.setdefault(name, set()) for found in (seen.keys, seen.fields, seen.gave))

    def watched(self: Any, build: Build) -> Build:
        if type(build) is not Build:  # `run` that ends in `restore`
            return original(self, build)
        given = dataclasses.replace(build, recipe=recorded(build.recipe, "", keys.add))
        done = original(self, recorded(given, "", fields.add, deep=False))
        found = {field.name: object.__getattribute__(done, field.name) for field in dataclasses.fields(Build)}
        found["recipe"] = build.recipe
        gave.update(field for field, value in found.items() if value is not getattr(build, field))
        return Build(**found)

    return watched
