"""Numbers from a command line, a recipe or Python, checked in one way and refused in the same words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deploypruner.errors import RecipeError

# Beyond these nothing here means anything, and arithmetic on int64 would overflow.
MOST = 2**31 - 1
SEEDS = 2**32 - 1
THREADS = 1024
_WRITTEN_BITS = 10_000
# Of one input of a model, a GiB in float32; what a network makes of it takes many times that.
MOST_ELEMENTS = 2**28


def check_number(
    name: str,
    value: float | None,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    hint: str,
) -> None:
    """Check that `value` is a finite number in a range; None, not given, is.

    Args:
        name: As the user writes it: "--step", "prune.samples".
        value: To be checked.
        least: Smallest one allowed.
        above: Largest one that is too small.
        most: Largest one allowed; `MOST` where neither this nor `below` is given.
        below: Smallest one that is too large.
        hint: A value that suits.

    Raises:
        RecipeError: It is not; the message says the range.
    """
    if value is None:
        return
    if most is None and below is None:
        most = MOST
    fits = (
        (isinstance(value, int) or math.isfinite(value))
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )
    if not fits:
        raise RecipeError(f"{name} must be {_range(least, above, most, below)}, got {_number(value)}", hint=hint)


def check_shape(name: str, shape: Sequence[int], *, hint: str) -> None:
    """Check that an array of this shape is one that a machine could hold.

    Args:
        name: Where the shape was said: "--input-shape".
        shape: To be checked.
        hint: A shape that suits.

    Raises:
        RecipeError: A size below 1, or more elements than `MOST_ELEMENTS`.
    """
    text = ",".join(map(str, shape))
    if not shape or min(shape) < 1:
        raise RecipeError(f"{name} {text} has a dimension below 1, and each must be at least 1", hint=hint)
    if math.prod(shape) > MOST_ELEMENTS:
        raise RecipeError(
            f"{name} {text} has {math.prod(shape):.2g} numbers, and one input may have {MOST_ELEMENTS:.2g}", hint=hint
        )


def _range(least: float | None, above: float | None, most: float | None, below: float | None) -> str:
    parts = [f"at least {_number(least)}"] if least is not None else []
    parts += [f"more than {_number(above)}"] if above is not None else []
    parts += [f"at most {_number(most)}"] if most is not None and (most != MOST or not parts) else []
    parts += [f"less than {_number(below)}"] if below is not None else []
    return " and ".join(parts)


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value) if abs(value) < 10**20 else f"a number of {digits(value)} digits"
    return f"{value:g}"


def digits(value: int) -> int:
    """How many decimal digits; about, where there are thousands, which Python refuses to write out."""
    if value.bit_length() < _WRITTEN_BITS:
        return len(str(abs(value)))
    return int(value.bit_length() * math.log10(2)) + 1
