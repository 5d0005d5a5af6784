"""Fields of a plan's JSON: each of its type and in its range, or a ValueError that names it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

_GREATEST = 2**62
_MOST_CHANNELS = 1 << 24


def number(document: Mapping[str, Any] | Sequence[Any], key: Any, *, least: int = 0, most: int = _GREATEST) -> int:
    """A whole number in a range."""
    value = document[key]
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"'{key}' is {_shown(value)}, no whole number from {least} to {most}")
    return value


def text(document: Mapping[str, Any] | Sequence[Any], key: Any) -> str:
    """A text."""
    value = document[key]
    if not isinstance(value, str):
        raise ValueError(f"'{key}' is {_shown(value)}, no text")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """Different texts."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"'{name}' is {_shown(value)}, no list of names")
    if len(set(value)) < len(value):
        raise ValueError(f"'{name}' names something twice")
    return tuple(value)


def kept_channels(group: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
    """Size of a group, and the channels that stay: at least one, ascending, each of them once."""
    size, keep, name = number(group, "size", least=1, most=_MOST_CHANNELS), group["keep"], text(group, "id")
    if not isinstance(keep, list) or not keep or not all(type(channel) is int for channel in keep):
        raise ValueError(f"group '{name}' keeps {_shown(keep)}, no list of channels")
    if keep[0] < 0 or keep[-1] >= size or any(b <= a for a, b in pairwise(keep)):
        raise ValueError(f"group '{name}' keeps channels that are not ascending from 0 to {size - 1}, each once")
    return size, tuple(keep)


def members(group: Mapping[str, Any]) -> tuple[tuple[str, int, int], ...]:
    """(parameter, axis, positions per channel) of every member."""
    found = group["members"]
    if not isinstance(found, list) or not all(isinstance(member, list) and len(member) == 3 for member in found):
        raise ValueError(f"the members of group '{text(group, 'id')}' are {_shown(found)}")
    return tuple((text(m, 0), number(m, 1, most=64), number(m, 2)) for m in found)


def _shown(value: object) -> str:
    line = ascii(value)
    return line if len(line) <= 60 else f"{line[:57]}..."
