"""Where each key of a recipe was set, so that an error speaks of the line in the file rather than of an option.

Everything below the command line calls a field by its option ("--macs"), or by its dotted name where it has none
("prune.samples"). Where the field was set in a file, the words are changed here, in one place.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from deploypruner.errors import DeployPrunerError, RecipeError
from deploypruner.reading import read_text
from deploypruner.recipe.option import flags
from deploypruner.recipe.whole import Recipe

Place = tuple[str | int, ...]
"""Of a key in a recipe: ("prune", "layers", 0, "match")."""

# An option, or a dotted name; not in the middle of a word, a path or another name, nor where
# it stands as in a file already.
_NAMED = re.compile(r"(?<![\w./\[-])(?:--[a-z][a-z-]*[a-z]|[a-z_]+(?:\.[a-z_]+)+)(?![\w/])")


@dataclass(frozen=True)
class Origins:
    """Which keys a recipe file sets, and which the command line, or Python, sets in their place.

    Args:
        path: Of the file, None where there is none.
        document: What it holds.
        given: What is laid over it, nested alike; None is not set.
    """

    path: Path | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def in_file(self, place: Place) -> bool:
        """Is the value of this key the file's?"""
        return _value(self.document, place) is not None and not self._overridden(place)

    def _overridden(self, place: Place) -> bool:
        return _value(self.given, place) is not None

    def at(self, *places: Place) -> str:
        """ "r.toml:3 and 5: ", the lines of these keys."""
        if self.path is None:
            return ""
        where = _lines(read_text(self.path, what="recipe"))
        lines = sorted({line for place in places if (line := _line(where, place))})
        return f"{self.path}{f':{_and(lines)}' if lines else ''}: "

    def translate(self, error: DeployPrunerError, place: Place = (), record: type | None = None) -> None:
        """Make an error speak of the file where a key was set there, with its line.

        Args:
            error: Its message and its hint are changed.
            place: Of the table that was being read.
            record: The dataclass that the table fills; the fields that it calls by their names are this table's.
        """
        if self.path is None:
            return
        known = dict(_places())
        own = {f.name for f in fields(record)} if record is not None else set()
        known = {word: (*place, at[-1]) if at[-1] in own else at for word, at in known.items()}
        bare = {key: (*place, key) for key in getattr(error, "keys", ())}
        named = bare | self._named(error.message, known)
        theirs = [at for at in named.values() if self.in_file(at)]
        if not theirs:
            return
        # Where an option was named, too, what the file does not say keeps its option.
        mixed = any(self._overridden(at) for at in named.values())
        words = {word: called(at) for word, at in (known | named).items() if self.in_file(at) or not mixed}
        told = _renamed(error.message, {key: called(at) for key, at in bare.items()})
        error.message = self.at(*theirs) + _translated(told, words)
        error.hint = _translated(error.hint, words)
        error.args = (error.message,)
        if isinstance(error, RecipeError):
            error.keys = ()

    def _named(self, text: str, known: Mapping[str, Place]) -> dict[str, Place]:
        """Keys that a text names, commands in it left aside."""
        words = [word for part in text.split("`")[::2] for word in _NAMED.findall(part)]
        found = {word: known.get(word, tuple(word.split("."))) for word in words}
        return {word: at for word, at in found.items() if word in known or self.in_file(at)}

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Errors of what is done with the recipe speak of the file, too."""
        try:
            yield
        except DeployPrunerError as error:
            self.translate(error)
            raise


def called(place: Place) -> str:
    """As it stands in the file: "[prune] step", "[[prune.layers]] match", "seed"."""
    *tables, key = place
    if not tables:
        return str(key)
    name = ".".join(table for table in tables if isinstance(table, str))
    return f"[[{name}]] {key}" if isinstance(tables[-1], int) else f"[{name}] {key}"


def canonical(place: Place) -> str:
    """What everything else calls it: its option, else its dotted name."""
    return _options().get(place) or ".".join(map(str, place))


def keys_of(record: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every key of a record, that of a section before those in it, each with the type of its field."""
    for key, kind in get_type_hints(record).items():
        yield (*place, key), kind
        if is_dataclass(kind):
            yield from keys_of(kind, (*place, key))


@cache
def _options() -> dict[Place, str]:
    return {flag.path: flag.option.flag.split("/")[0] for flag in flags(Recipe).values()}


@cache
def _places() -> dict[str, Place]:
    """Option or dotted name -> key."""
    dotted = {".".join(map(str, place)): place for place, _ in keys_of(Recipe)}
    named = {word: flag.path for flag in flags(Recipe).values() for word in flag.option.flag.split("/")}
    return dotted | named


def _translated(text: str, words: Mapping[str, str]) -> str:
    """A text with other words for keys, commands in it left as they are."""
    parts = text.split("`")
    parts[::2] = [_NAMED.sub(lambda m: words.get(m[0], m[0]), part) for part in parts[::2]]
    return "`".join(parts)


def _renamed(text: str, words: Mapping[str, str]) -> str:
    """A text with other words for what it calls by bare names; where it names none of them, the first goes before."""
    found = False
    for name, word in words.items():
        text, times = re.subn(rf"(?<![\w.-]){re.escape(name)}(?!\w)", word, text, count=1)
        found = found or times > 0
    return text if found or not words else f"{next(iter(words.values()))}: {text}"


def _value(document: Any, place: Place) -> Any:
    for part in place:
        if isinstance(document, Mapping):
            document = document.get(str(part))
        elif isinstance(document, list | tuple) and isinstance(part, int) and part < len(document):
            document = document[part]
        else:
            return None
    return document


def _line(lines: Mapping[Place, int], place: Place) -> int | None:
    """Of a key, else of what it stands in."""
    return next((lines[place[:end]] for end in range(len(place), 0, -1) if place[:end] in lines), None)


def _and(lines: list[int]) -> str:
    return " and ".join(map(str, lines))


def _lines(text: str) -> dict[Place, int]:
    """The line on which each key and table of a TOML document begins.

    A statement is as many lines as it takes to be TOML by itself, so that tomllib is the only one to read TOML.
    """
    found: dict[Place, int] = {}
    table: Place = ()
    counts: dict[Place, int] = {}
    for number, statement in _statements(text):
        keys = tomllib.loads(statement)
        if not statement.lstrip().startswith("["):
            for place in _leaves(keys, table):
                for end in range(len(table) + 1, len(place) + 1):
                    found.setdefault(place[:end], number)
            continue
        repeated = statement.lstrip().startswith("[[")
        table = ()
        while keys:
            (name, inner), *_ = keys.items()
            table = (*table, name)
            keys = inner[0] if isinstance(inner, list) else inner
            if not keys and repeated:
                counts[table] = counts.get(table, -1) + 1
            if table in counts:
                found.setdefault(table, number)
                table = (*table, counts[table])
        found.setdefault(table, number)
    return found


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each statement of a TOML document with the number of its first line."""
    held, first = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        first = first if held else number
        held += f"{line}\n"
        try:
            empty = not tomllib.loads(held) and "=" not in held
        except tomllib.TOMLDecodeError:  # not all of it yet
            continue
        if not empty:
            yield first, held
        held = ""


def _leaves(value: Any, place: Place) -> Iterator[Place]:
    inner: Iterator[tuple[str | int, Any]] = iter(())
    if isinstance(value, dict):
        inner = iter(value.items())
    elif isinstance(value, list) and any(isinstance(held, dict) for held in value):
        inner = iter(enumerate(value))
    parts = [(*place, key) for key, _ in inner]
    if not parts:
        yield place
        return
    for part in parts:
        yield from _leaves(value[part[-1]], part)


def wrong(place: Place, message: str, *, hint: str) -> RecipeError:
    """An error about one key: its name, then what is wrong with it."""
    return RecipeError(f"{canonical(place)} {message}", hint=hint)
