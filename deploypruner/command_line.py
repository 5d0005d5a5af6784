"""A command line as words: the same with other options."""

from __future__ import annotations

from collections.abc import Sequence


def without_option(words: Sequence[str], option: str) -> list[str]:
    """The command without an option and its value, however often it stands there."""
    kept, skip = [], False
    for word in words:
        if not (skip or word == option or word.startswith(f"{option}=")):
            kept.append(word)
        skip = word == option and not skip
    return kept


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """The command with another value of an option, which may stand in it already."""
    return [*without_option(words, option), option, value]
