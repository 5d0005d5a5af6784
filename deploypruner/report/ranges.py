"""Names of layers that differ in numbers only, as one: "blocks.0-11.mlp.fc1"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPAN = re.compile(r"\d+(-\d+)?(,\d+(-\d+)?)*")


def collapse(names: Iterable[str]) -> list[str]:
    """Merge names that are equal but for whole numbers between dots, in the order of the first of each.

    "a.0.b", "a.1.b", "a.3.b", "c" -> "a.0-1,3.b", "c".
    """
    merged = [name.split(".") for name in dict.fromkeys(names)]
    for position in range(max(map(len, merged), default=0) - 1, -1, -1):
        together: dict[tuple[object, ...], list[Sequence[str]]] = {}
        for pieces in merged:
            numbered = position < len(pieces) and _SPAN.fullmatch(pieces[position])
            key = (*pieces[:position], None, *pieces[position + 1 :]) if numbered else tuple(pieces)
            together.setdefault(key, []).append(pieces)
        merged = [
            [*group[0][:position], _spans(pieces[position] for pieces in group), *group[0][position + 1 :]]
            if len(group) > 1
            else list(group[0])
            for group in together.values()
        ]
    return [".".join(pieces) for pieces in merged]


def _spans(texts: Iterable[str]) -> str:
    """ "3", "0", "1" -> "0-1,3"."""
    numbers = sorted({n for text in texts for n in _numbers(text)})
    starts = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, ends, strict=True))


def _numbers(text: str) -> Iterable[int]:
    for span in text.split(","):
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1)
