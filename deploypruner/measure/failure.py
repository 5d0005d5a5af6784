"""What could not be measured, and why: returned beside the timings of everything else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.errors import MeasureError
from deploypruner.records import Artifact


@dataclass(frozen=True)
class Failure:
    """One artifact on one runtime whose worker could not load it, crashed or hung.

    Args:
        artifact: What was to be timed.
        runtime: Registered runtime name.
        message: What happened, naming both, and what the worker said last.
        hint: What to try.
    """

    artifact: Artifact
    runtime: str
    message: str
    hint: str = ""


def as_error(failures: Sequence[Failure]) -> MeasureError:
    """One error for at least one failure: every message, and the first hint."""
    return MeasureError("; ".join(failure.message for failure in failures), hint=failures[0].hint)
