"""A metric of the user's."""

from __future__ import annotations

from deploypruner.errors import RecipeError
from deploypruner.measure.own_metric import SIGNATURE, OwnMetric
from deploypruner.sources.factory import find_callable


def own_metric(given: object) -> OwnMetric | None:
    """A metric of the user's: a function, or "package.module:function"; None for "".

    Raises:
        InputError: It does not exist, or is no function.
        RecipeError: An object that is no function.
    """
    if given == "":
        return None
    function = find_callable(given, f"expected {SIGNATURE}") if isinstance(given, str) else given
    if not callable(function):
        raise RecipeError(f"metric is a {type(function).__name__}, not a function", hint=f"expected {SIGNATURE}")
    return OwnMetric(function, str(getattr(function, "__name__", type(function).__name__)))
