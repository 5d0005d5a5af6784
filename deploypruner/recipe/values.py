"""Whether a value fits the type of a field of the recipe, and what that type is called by someone who writes TOML."""

from __future__ import annotations

import math
import operator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

_CALLED = {
    float: "number",
    int: "whole number",
    str: "string",
    Path: "file name",
    dict: "table",
}


class Misfit(Exception):
    """A value that does not fit its field's type."""


def fitted(value: Any, kind: Any) -> Any:
    """The value as the field holds it: a list as a tuple, a whole number where any is allowed as a float.

    Args:
        value: As TOML or Python has it.
        kind: Type of the field, as `typing.get_type_hints` gives it.

    Raises:
        Misfit: It is of another type. What it may be is for `said` to say.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        if not any(value == part and type(value) is type(part) for part in parts):
            raise Misfit
        return value
    if origin in (Union, UnionType):
        exact = sorted(parts, key=lambda part: type(value) is not part)  # an int stays one where both are allowed
        return _first_fitting(value, exact)
    if origin is tuple:
        return _tuple(value, parts)
    if origin is list:
        return list(_tuple(value, (*parts, ...)))
    if origin is dict:
        if not isinstance(value, dict):
            raise Misfit
        return {key: fitted(held, parts[1]) for key, held in value.items()}
    return _plain(value, kind)


def _first_fitting(value: Any, kinds: list[Any]) -> Any:
    for kind in kinds:
        try:
            return fitted(value, kind)
        except Misfit:
            continue
    raise Misfit


def _tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise Misfit
    if parts[-1] is ...:
        return tuple(fitted(held, parts[0]) for held in value)
    if len(value) != len(parts):
        raise Misfit
    return tuple(map(fitted, value, parts))


def _plain(value: Any, kind: type) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind in (str, Path, bool, NoneType):
        if not isinstance(value, kind):
            raise Misfit
        return value
    if isinstance(value, bool | str):  # True is an int to Python, and to nobody else
        raise Misfit
    try:
        if kind is float:
            return float(value)
        return int(value) if isinstance(value, float) and value.is_integer() else operator.index(value)
    except OverflowError:  # whole, and larger than any float
        return math.copysign(math.inf, value)
    except TypeError:
        raise Misfit from None


def said(kind: Any) -> str:
    """What a value of this type is: "a number", "a list of whole numbers", "auto, keep or prune"."""
    choices = _choices(kind)
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def _choices(kind: Any) -> list[str]:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(part) for part in parts]
    if origin in (Union, UnionType):
        return [choice for part in parts if part is not NoneType for choice in _choices(part)]
    if origin in (tuple, list):
        count = "" if origin is list or parts[-1] is ... else f"{len(parts)} "
        return [f"a list of {count}{_several(parts[0])}"]
    return ["true", "false"] if kind is bool else [f"a {_CALLED[origin or kind]}"]


def _several(kind: Any) -> str:
    if get_origin(kind) is tuple:
        return f"lists of {_several(get_args(kind)[0])}"
    return f"{_CALLED[kind]}s"


def words(kind: Any) -> tuple[str, ...]:
    """What a value of this type may be, where it is one of a few words; else ()."""
    kinds = [part for part in get_args(kind) if part is not NoneType]
    if get_origin(kind) is Literal:
        return tuple(part for part in kinds if isinstance(part, str))
    return words(kinds[0]) if get_origin(kind) in (Union, UnionType) and len(kinds) == 1 else ()
