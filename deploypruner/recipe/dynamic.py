"""`--dynamic`: how open axes are asked for on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from deploypruner.errors import RecipeError

HINT = "--dynamic 2,3 opens axes 2 and 3 of every input; or NAME:AXIS=MIN..MAX; auto; none"
_AXIS = re.compile(r"(\d{1,2})(?:=(\d{1,9})\.\.(\d{1,9})?)?")


@dataclass(frozen=True)
class Asked:
    """An axis that is to stay open.

    Args:
        input: Name of the argument, "" for every input that has the axis.
        axis: 1 or more; axis 0 is the batch.
        least: Shortest length it is to have, None where nothing was said.
        most: Longest one.
    """

    input: str
    axis: int
    least: int | None = None
    most: int | None = None

    def __str__(self) -> str:
        """As on the command line."""
        lengths = "" if self.least is None and self.most is None else f"={self.least or 1}..{self.most or ''}"
        return f"{f'{self.input}:' if self.input else ''}{self.axis}{lengths}"


Request: TypeAlias = tuple[Asked, ...] | Literal["auto", "none"] | None
"""Axes; "auto" for every size that the model leaves open, "none" for no axis, None for those of the program."""


def parse(texts: Sequence[str]) -> Request:
    """Read what was said on the command line: "2,3", "x:2=8..512,3", "auto", "none"; None where nothing was said.

    Raises:
        RecipeError: It is none of these, or a range is empty.
    """
    given = [text.strip() for text in texts]
    if not given:
        return None
    if len(given) == 1 and given[0] in ("auto", "none"):
        return cast(Literal["auto", "none"], given[0])
    return tuple(asked for text in given for asked in _parsed(text))


def _parsed(text: str) -> Iterator[Asked]:
    name, colon, axes = text.rpartition(":")
    if colon and not name:
        raise RecipeError(f"--dynamic {text} names no input before the colon", hint=HINT)
    for part in axes.split(","):
        found = _AXIS.fullmatch(part.strip())
        if found is None:
            raise RecipeError(f"--dynamic {text}: '{part.strip()}' is no axis and no axis with a range", hint=HINT)
        axis, least, most = (None if number is None else int(number) for number in found.groups())
        assert axis is not None, "the pattern begins with it"
        yield checked(Asked(name.strip(), axis, least, most))


def checked(asked: Asked) -> Asked:
    """The same axis.

    Raises:
        RecipeError: It is the batch, or its range is empty.
    """
    if asked.axis == 0:
        raise RecipeError("--dynamic 0: axis 0 is the batch, which is open anyhow", hint=HINT)
    if asked.least is not None and asked.least < 1:
        raise RecipeError(f"--dynamic {asked}: a length is at least 1", hint=HINT)
    if asked.most is not None and asked.most <= (asked.least or 1):
        raise RecipeError(f"--dynamic {asked}: the range holds no two lengths", hint=HINT)
    return asked
