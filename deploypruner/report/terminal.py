"""Text for a terminal or a pipe: colour that can be switched off, lines as long as it is wide."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Collection, Sequence

from deploypruner.terminal import escaped

Paint = Callable[[str, str], str]
_STYLES = {"faster": "32", "slower": "31", "bad": "1;31", "good": "32", "warn": "33", "strong": "1", "faint": "2"}

# A number and its unit stay on one line, and so do an interval and n = 360: the sign textwrap does not break at.
_UNIT, _TIE = re.compile(r"(\d) (?=(?:%|ms|[kMG]?B)(?!\w))|(\[[-\d.]+,|n|=) (?=[-\d.]+\]|= ?\d|\d+[,)])"), "\u00a0"


def painter(colour: bool) -> Paint:
    """Return paint(text, style); without colour, or for an unknown style, the text comes back as it is."""
    if not colour:
        return lambda text, style: text
    return lambda text, style: f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if style in _STYLES else text


def ascii_only(text: str) -> str:
    """The signs that sentences and cells of a report share with the page, as a terminal without them has them."""
    return text.replace(" ± ", " +-").replace("± ", "+-").replace(" · ", " | ")


def wrap(prefix: str, text: str, width: int | None) -> str:
    """`prefix` and escaped `text`, later lines indented under the text; one line when width is None."""
    if width is None:
        return prefix + escaped(text)
    kept = _UNIT.sub(rf"\1\2{_TIE}", escaped(text))
    filled = textwrap.fill(
        kept,
        max(width, len(prefix) + (20 if prefix else 0)),
        initial_indent=prefix,
        subsequent_indent=" " * len(prefix),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return filled.replace(_TIE, " ")


def aligned(rows: Sequence[Sequence[str]], *, left: Collection[int]) -> list[str]:
    """A line for each row, its cells under those of the others.

    Args:
        rows: Heads first.
        left: Numbers of the columns that begin, and do not end, at the same place.
    """
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(size) if i in left else cell.rjust(size)
            for i, (cell, size) in enumerate(zip(row, sizes, strict=True))
        ).rstrip()
        for row in rows
    ]
