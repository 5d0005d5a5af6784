"""Recipe files and the command line laid over them, checked to the last key."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

from deploypruner.errors import RecipeError, nearest
from deploypruner.reading import read_toml, shortened
from deploypruner.recipe.whole import BUDGETS, DERIVED, Recipe

_KINDS = ("int", "bool", "literal['auto']")


def read_recipe(path: Path | None, overrides: dict[str, Any]) -> Recipe:
    """Read a recipe file and lay the command line over it.

    Args:
        path: TOML file, None for the defaults.
        overrides: Nested dict like the file; entries that are None are not set.

    Raises:
        InputError: The file is missing, no regular file, or not TOML.
        RecipeError: An unknown key (the nearest known one is offered), or a value of the wrong type or out of range.
    """
    document: dict[str, Any] = {}
    if path is not None:
        document = read_toml(path, what="recipe", hint="see recipe.toml of any build")
    _check_keys(Recipe, document, "")
    if path is None:
        _check_values(overrides)
    return _validated(_merge(document, overrides))


def overlay(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """Return `recipe` with `overrides`, a nested dict whose None entries are not set, laid over it.

    Raises:
        RecipeError: A value of the wrong type or out of range.
    """
    return _validated(_merge(dataclasses.asdict(recipe), overrides))


def _check_values(document: dict[str, Any]) -> None:
    """Let the records refuse what is out of range, in milliseconds: pydantic takes half a second to load.

    Raises:
        RecipeError: A value out of range. What is of the wrong type is left to pydantic.
    """
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        _made(Recipe, _merge({}, document))


def _made(cls: Any, document: dict[str, Any]) -> Any:
    hints = get_type_hints(cls)
    sections = {key: dataclasses.is_dataclass(hints[key]) and isinstance(document[key], dict) for key in document}
    return cls(**{key: _made(hints[key], value) if sections[key] else value for key, value in document.items()})


def _validated(document: dict[str, Any]) -> Recipe:
    from pydantic import TypeAdapter, ValidationError  # slow to load, and not needed to refuse a number

    try:
        return TypeAdapter(Recipe).validate_python(document)
    except ValidationError as error:
        first = error.errors()[0]
        # Of a union such as `int | "auto"` pydantic names the kind it tried, too.
        place = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
        raise RecipeError(
            f"recipe: {place} = {shortened(repr(first['input']))}: {first['msg'].lower()}",
            hint=f"correct the value of {place}",
        ) from error


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    if any(over.get(key) is not None for key in BUDGETS):  # one kind of budget takes the place of another
        merged = {key: value for key, value in merged.items() if key not in BUDGETS}
    for key, value in over.items():
        if isinstance(value, dict):
            merged[key] = _merge(merged.get(key, {}), value)
        elif value is not None:
            merged[key] = value
    return merged


def _check_keys(cls: Any, document: dict[str, Any], place: str) -> None:
    """Refuse keys that no field answers to; pydantic ignores them in standard dataclasses."""
    hints = get_type_hints(cls)
    for key, value in document.items():
        if key not in hints:
            raise RecipeError(f"recipe: no key '{place}{key}'", hint=nearest(key, hints))
        if f"{place}{key}" in DERIVED:
            derived_from = DERIVED[f"{place}{key}"]
            raise RecipeError(f"recipe: '{place}{key}' follows from '{derived_from}'", hint=f"set '{derived_from}'")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                raise RecipeError(f"recipe: {place}{key} is a section, got {value!r}", hint=f"write [{place}{key}]")
            _check_keys(hints[key], value, f"{place}{key}.")
        table = next(filter(dataclasses.is_dataclass, get_args(hints[key])), None)
        for i, entry in enumerate(value if table is not None and isinstance(value, list) else ()):
            if not isinstance(entry, dict):
                raise RecipeError(
                    f"recipe: {place}{key} is a list of tables, got {entry!r}", hint=f"write [[{place}{key}]]"
                )
            _check_keys(table, entry, f"{place}{key}.{i}.")
