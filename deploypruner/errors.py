"""Errors a user can act on: what happened in their names and numbers, then one hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DeployPrunerError(Exception):
    """Base of every expected failure; the command line prints it without a traceback.

    Args:
        message: What happened, naming the file, layer or number. Lower case, no full stop.
        hint: One thing the user can do next; empty when there is nothing useful to say.
        finished: Is a whole build on disk all the same, whose report is to be shown first?
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "", finished: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.finished = finished

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class InputError(DeployPrunerError):
    """A model, weight file, data set, recipe or output folder that cannot be used as given."""


class RecipeError(DeployPrunerError):
    """An option, recipe key or parameter that is unknown, of the wrong type or out of range.

    Args:
        message: See `DeployPrunerError`; calls a key of the recipe by its option, or by its dotted name.
        hint: See there.
        keys: Fields that the message calls by their bare names, because their record is held in several places.
    """

    def __init__(self, message: str, *, hint: str = "", keys: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.keys = keys


class TraceError(DeployPrunerError):
    """A model whose graph could not be captured."""


class PlanError(InputError):
    """A plan that does not belong to the model it is applied to."""


class BudgetError(DeployPrunerError):
    """A budget that cannot be reached; the message says what can."""

    exit_code = 3


class VerificationError(DeployPrunerError):
    """Two forms of the same model (masked, removed, exported) that disagree."""

    exit_code = 4


class MeasureError(DeployPrunerError):
    """A worker process that crashed, hung or could not load its artifact."""


class DeviceError(DeployPrunerError):
    """A device that cannot be reached, lacks something, or was lost on the way."""


class DeviceLostError(DeviceError):
    """A device that may be reached again: the connection broke, or it does not answer now."""


class KernelError(DeployPrunerError):
    """Sparse kernels that are not built, do not fit this machine, or were given contradictory weights."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that offers the known name closest to `name`, or lists all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names)}"


def said_by(error: BaseException) -> str:
    """First line of an exception's message that is not empty; its type where it says nothing."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the class may be the user's
        text = ""
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
