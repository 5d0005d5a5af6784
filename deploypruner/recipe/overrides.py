"""What a command line or a call of `compile` says, as a recipe to lay over another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deploypruner.recipe.option import Flag, flags
from deploypruner.recipe.whole import Recipe

_FLAGS = flags(Recipe)
# MODEL is an argument and has no flag.
_SOURCE = ("model", "source")


def overrides(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the command line, or arguments of `compile`, as a nested recipe; what was not given is None.

    Args:
        options: Value by the name of the option as a Python argument; "model" is MODEL.

    Raises:
        RecipeError: Something that is chosen by name has none of the names there are.
    """
    document: dict[str, Any] = {}
    for name, value in options.items():
        if name == "model":
            _put(document, _SOURCE, value)
        elif name in _FLAGS:
            given = _given(_FLAGS[name], value)
            _FLAGS[name].option.check(given)  # at once: what reads the rest of a recipe takes a while to load
            _put(document, _FLAGS[name].path, given)
    return document


def _given(flag: Flag, value: Any) -> Any:
    if isinstance(value, str):  # of `compile`, where a tuple may be expected: the recipe says so
        return value
    if flag.name == "runtime":
        return chosen_runtimes(value)
    if flag.option.commas and value is not None:
        value = tuple(part.strip() for one in value for part in one.split(","))
    return None if value == () else value


def _put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, key = path
    for section in sections:
        document = document.setdefault(section, {})
    document[key] = value


def chosen_runtimes(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What --runtime named, None where that is nothing or only "auto"."""
    chosen = tuple(name for name in names or () if name != "auto")
    return chosen or None
