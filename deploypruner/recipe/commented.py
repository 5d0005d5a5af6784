"""A recipe to start from: every key with what it is, all of them defaults, none of them set."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

import tomli_w

from deploypruner.recipe.option import described
from deploypruner.recipe.whole import BUDGETS, DERIVED, Recipe

_WIDTH = 100
_BUDGET = "One of latency, speedup and macs; macs = 0.5 without any."


def commented_recipe(source: str) -> str:
    """The text of a recipe file for one model; read as it is, it gives the defaults.

    Args:
        source: MODEL as on the command line.
    """
    own, sections = _parted(Recipe, "")
    lines = [
        "# A recipe: deploypruner compile --recipe THIS.toml. Take away a # to set a key; the values are defaults."
    ]
    lines += [line for key in own for line in ("", *key)]
    for name, help, keys in sections:
        lines += ["", "", *_comment(help), f"[{name}]"]
        if name == "model":
            lines += [tomli_w.dumps({"source": source}).rstrip()]
        lines += [line for key in keys for line in ("", *key)]
    return "\n".join(lines) + "\n"


Keys = list[list[str]]


def _parted(cls: type, place: str) -> tuple[Keys, list[tuple[str, str, Keys]]]:
    """The keys of a table itself, each as lines, and the tables in it: name, help, keys."""
    hints, about = get_type_hints(cls), described(cls)
    own: Keys = []
    tables: list[tuple[str, str, Keys]] = []
    for f in dataclasses.fields(cls):
        name = f"{place}.{f.name}" if place else f.name
        help = about.get(f.name, "")
        if dataclasses.is_dataclass(hints[f.name]):
            kind = hints[f.name]
            assert isinstance(kind, type), "a section is a dataclass"
            keys, inner = _parted(kind, name)
            tables += [(name, help, keys), *inner]
        elif name not in DERIVED and name != "model.source":
            own.append(list(_key(f.name, help, _default(f))))
    return own, tables


def _key(name: str, help: str, default: Any) -> Iterator[str]:
    """Its help, then the key with its default; with "..." where nothing is set without it."""
    yield from _comment(f"{help} {_BUDGET}" if name in BUDGETS else help)
    plain = _toml(default)
    yield f"# {name} = {plain or '...'}"


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(text, _WIDTH)]


def _default(f: dataclasses.Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def _toml(value: Any) -> str:
    """As TOML has it, on one line; "" for what it cannot say."""
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    if not isinstance(value, bool | int | float | str):
        return ""
    return tomli_w.dumps({"key": value}).rstrip().removeprefix("key = ")
