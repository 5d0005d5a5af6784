"""Recipe files and the command line laid over them, checked to the last key."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

from deploypruner.device.described import HERE, DescribedTarget, described
from deploypruner.errors import DeployPrunerError, RecipeError, nearest
from deploypruner.reading import read_toml, shortened
from deploypruner.recipe.option import Option, flags, options_of
from deploypruner.recipe.origins import Origins, Place, called, keys_of, wrong
from deploypruner.recipe.values import Misfit, fitted, said, words
from deploypruner.recipe.whole import BUDGETS, DERIVED, Recipe


def read_recipe(path: Path | None, overrides: dict[str, Any]) -> Recipe:
    """Read a recipe file and lay the command line over it.

    Args:
        path: TOML file, None for the defaults.
        overrides: Nested dict like the file; entries that are None are not set.

    Raises:
        InputError: The file is missing, no regular file, or not TOML.
        RecipeError: An unknown key (the nearest known one is offered), or a value of the wrong type or out of range;
            with file, line and key where the file says it.
    """
    return recipe_of(origins_of(path, overrides))


def recipe_of(origins: Origins) -> Recipe:
    """The recipe that a file and what is laid over it say together; see `read_recipe`.

    Raises:
        RecipeError: As `read_recipe`.
    """
    document = dict(origins.document)
    _check_keys(Recipe, document, (), origins)
    merged = _merge(document, dict(origins.given))
    return _made(Recipe, _merge(_of_target(merged.get("target")), merged), (), origins)


def _of_target(name: Any) -> dict[str, Any]:
    """What targets.toml says of a target and a recipe may say otherwise; nothing of a name that is refused later."""
    try:
        target = described(name) if isinstance(name, str) else DescribedTarget(HERE)
    except DeployPrunerError:
        return {}
    measure = {"threads": target.threads, "runtimes": list(target.runtimes) or None}
    return {"measure": {key: value for key, value in measure.items() if value is not None}}


def origins_of(path: Path | None, overrides: dict[str, Any]) -> Origins:
    """Who set what, for errors of what is done with the recipe; see `read_recipe`.

    Raises:
        InputError: As `read_recipe`.
    """
    if path is None:
        return Origins(given=overrides)
    return Origins(path, read_toml(path, what="recipe", hint="see recipe.toml of any build"), overrides)


def resolved(recipe: str | Path | Recipe | None, overrides: dict[str, Any]) -> tuple[Recipe, Origins]:
    """What a function of the Python API is given as its recipe, with its arguments laid over it; and who set what.

    Args:
        recipe: Itself, its file, or None for the defaults.
        overrides: As `read_recipe` takes them.

    Raises:
        InputError: As `read_recipe`.
        RecipeError: As `read_recipe`.
    """
    if isinstance(recipe, Recipe):
        return overlay(recipe, overrides), origins_of(None, overrides)
    origins = origins_of(Path(recipe) if recipe else None, overrides)
    return recipe_of(origins), origins


def overlay(recipe: Recipe, overrides: dict[str, Any]) -> Recipe:
    """Return `recipe` with `overrides`, a nested dict whose None entries are not set, laid over it.

    Raises:
        RecipeError: A value of the wrong type or out of range.
    """
    return _made(Recipe, _merge(dataclasses.asdict(recipe), overrides), (), Origins(given=overrides))


def flat(recipe: Recipe) -> dict[str, Any]:
    """Every key, dotted ("prune.step"), and its value."""

    def values(table: dict[str, Any], place: str) -> Iterator[tuple[str, Any]]:
        for key, value in table.items():
            if isinstance(value, dict):
                yield from values(value, f"{place}{key}.")
            else:
                yield f"{place}{key}", value

    return dict(values(dataclasses.asdict(recipe), ""))


def _made(cls: Any, document: dict[str, Any], place: Place, origins: Origins) -> Any:
    """A table as its record, the tables in it first.

    Raises:
        RecipeError: A value of the wrong type, or one that the record refuses; says where it was set.
    """
    hints, about = get_type_hints(cls), options_of(cls)
    held: dict[str, Any] = {}
    try:
        for key, value in document.items():
            at, table = (*place, key), _table(hints[key])
            if dataclasses.is_dataclass(hints[key]):
                held[key] = _made(hints[key], value, at, origins)
            elif table is not None and isinstance(value, list | tuple):
                held[key] = tuple(_made(table, _checked_table(one), (*at, i), origins) for i, one in enumerate(value))
            else:
                held[key] = _fitted(value, hints[key], at, about.get(key))
        required = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in held]
        if required:
            text = f"{origins.at(place)}{called((*place, required[0]))} is missing"
            raise RecipeError(text, hint=f"add {required[0]} to this table")
        return cls(**held)
    except RecipeError as error:  # of a table in this one: says so already
        origins.translate(error, place, cls)
        raise


def _checked_table(value: Any) -> dict[str, Any]:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _required(f: dataclasses.Field[Any]) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _table(hint: Any) -> Any:
    """The record of each entry, where a field holds a list of tables."""
    return next(filter(dataclasses.is_dataclass, get_args(hint)), None)


def _fitted(value: Any, kind: Any, place: Place, about: Option | None) -> Any:
    try:
        return fitted(value, kind)
    except Misfit:
        raise wrong(
            place, f"must be {said(kind)}, got {_shown(value)}", hint=_hint(value, kind, place, about)
        ) from None


def _hint(value: Any, kind: Any, place: Place, about: Option | None) -> str:
    if isinstance(value, str) and (known := words(kind)):
        return nearest(value, known)
    if isinstance(value, str):
        for bare in ({"true": True, "false": False}.get(value), *_numbers(value)):
            if bare is not None and _fits(bare, kind):
                return f"write it without quotes: {value}"
    if not isinstance(value, list | tuple) and _fits([value], kind):
        return f"write it as a list: [{_shown(value)}]"
    return f"{place[-1]}: {about.help[:1].lower()}{about.help[1:]}" if about is not None else ""


def _shown(value: Any) -> str:
    """About as TOML has it."""
    return str(value).lower() if isinstance(value, bool) else shortened(repr(value))


def _numbers(text: str) -> Iterator[float]:
    try:
        yield float(text)
    except ValueError:
        return


def _fits(value: Any, kind: Any) -> bool:
    try:
        fitted(value, kind)
    except Misfit:
        return False
    return True


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


def _check_keys(cls: Any, document: dict[str, Any], place: Place, origins: Origins) -> None:
    """Refuse keys that no field answers to, and what is no table where one belongs.

    Raises:
        RecipeError: There is such a key; says its line.
    """
    hints = get_type_hints(cls)
    for key, value in document.items():
        at = (*place, key)
        dotted = ".".join(map(str, at))
        if key not in hints:
            raise RecipeError(f"{origins.at(at)}{_no_key(at)}", hint=_nearest_key(key, hints, at))
        if dotted in DERIVED:
            decides = called(tuple(DERIVED[dotted].split(".")))
            raise RecipeError(f"{origins.at(at)}{called(at)} follows from {decides}", hint=f"set {decides}")
        if dataclasses.is_dataclass(hints[key]):
            if not isinstance(value, dict):
                text = f"{dotted} is a section, got {_shown(value)}"
                raise RecipeError(f"{origins.at(at)}{text}", hint=_section_hint(hints[key], dotted))
            _check_keys(hints[key], value, at, origins)
        table = _table(hints[key])
        for i, entry in enumerate(value if table is not None and isinstance(value, list) else ()):
            if not isinstance(entry, dict):
                text = f"{dotted} is a list of tables, got {_shown(entry)}"
                raise RecipeError(f"{origins.at((*at, i))}{text}", hint=f"write [[{dotted}]]")
            _check_keys(table, entry, (*at, i), origins)


def _no_key(place: Place) -> str:
    *tables, key = place
    return f"there is no key '{key}'" + (f" under {called(place).rpartition(' ')[0]}" if tables else "")


def _section_hint(cls: Any, dotted: str) -> str:
    first = " and source under it" if "source" in get_type_hints(cls) else " and its keys under it"
    return f"write [{dotted}]{first}"


def _nearest_key(key: str, known: dict[str, Any], place: Place) -> str:
    """The nearest of this table's keys, unless another table has this very one, or an option is called so."""
    offered = nearest(key, known)
    flag = flags(Recipe).get(key.replace("-", "_"))
    if flag is not None and flag.path != place:
        return f"that is {called(flag.path)}"
    others = [
        at
        for at, kind in keys_of(Recipe)
        if at[-1] == key
        and at != place
        and not dataclasses.is_dataclass(kind)
        and ".".join(map(str, at)) not in DERIVED
    ]
    if len(others) == 1 and not offered.startswith("did"):
        return f"that is {called(others[0])}"
    return offered
