"""How far an artifact is behind the dense model, in points, output by output."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from deploypruner.records import RELATIVE_ERROR, Metric, OutputQuality


class JudgedRow(Protocol):
    """What a report's row and a `Quality` have in common."""

    @property
    def accuracy(self) -> float | None:
        """The metric on the labels."""

    @property
    def metric(self) -> Metric:
        """What the accuracy is counted in."""

    @property
    def agreement(self) -> float | None:
        """Of the output that agrees least."""

    @property
    def agreement_kind(self) -> str:
        """What that is."""

    @property
    def outputs(self) -> tuple[OutputQuality, ...]:
        """Each output by itself; empty where nobody looked."""


@dataclass(frozen=True)
class Gap:
    """What is lost in one regard.

    A point is one percent of accuracy, mIoU or F1; a hundredth of R2; for a metric of the user's one percent of the
    dense model's value; of agreement one percent, as of a cosine or a relative error.

    Args:
        kind: Name of the metric ("accuracy", "mIoU", "R2", ...), or without labels what agreement with the dense
            model means: "top-1", "cosine", "relative error", ...
        dense: Of the dense model, in the unit of the metric; 100 for agreement.
        found: Of the artifact; agreement in percent.
        lost: Points; NaN where something is not a number.
        labelled: Is it the metric on labels, and not agreement?
        unit: "%", or "" for a plain number.
        output: Which output of several; "" where there is one, or where the metric is of all.
    """

    kind: str
    dense: float
    found: float
    lost: float
    labelled: bool
    unit: str = "%"
    output: str = ""


def points_of(kind: str, *, labelled: bool) -> str:
    """What the points of a gap are points of: "points of accuracy"; without labels, that there are none.

    Args:
        kind: As `Gap` has it.
        labelled: As `Gap` has it.
    """
    if labelled:
        return f"points of {kind}"
    if kind == RELATIVE_ERROR:
        return f"points of {kind} against the dense model (the data has no labels)"
    return f"points of agreement with the dense model ({kind}; the data has no labels)"


def gaps(found: JudgedRow, dense: JudgedRow | None) -> list[Gap]:
    """Every regard in which an artifact is judged.

    Outputs with labels are judged by their metric against the dense model's, the others by their agreement with it; a
    metric of the user's speaks for all outputs together.

    Args:
        found: The artifact.
        dense: The dense model, None where it was not judged.
    """
    if found.accuracy is not None and dense is not None and dense.accuracy is not None:
        if not found.outputs or found.metric.points is None:
            return [_scored(found.metric, dense.accuracy, found.accuracy)]
    elif not found.outputs:
        agreed = found.agreement
        return [] if agreed is None else [_agreed(found.agreement_kind, agreed)]
    return list(_by_output(found, dense))


def largest(found: list[Gap]) -> Gap | None:
    """The one that loses most, what is not a number first; None of none."""
    return max(found, key=lambda gap: gap.lost if gap.lost == gap.lost else float("inf"), default=None)


def _by_output(found: JudgedRow, dense: JudgedRow | None) -> Iterator[Gap]:
    theirs = {} if dense is None else {output.output: output for output in dense.outputs}
    for output in found.outputs:
        name = output.output if len(found.outputs) > 1 else ""
        before = theirs[output.output].accuracy if output.output in theirs else None
        if output.accuracy is not None and output.metric is not None and before is not None:
            yield _scored(output.metric, before, output.accuracy, name)
        elif output.agreement is not None:
            yield _agreed(output.agreement_kind, output.agreement, name)


def _scored(metric: Metric, dense: float, found: float, output: str = "") -> Gap:
    return Gap(metric.name, dense, found, metric.lost(dense, found), True, metric.unit, output)


def _agreed(kind: str, agreement: float, output: str = "") -> Gap:
    return Gap(kind, 100.0, 100 * agreement, 100 - 100 * agreement, False, output=output)
