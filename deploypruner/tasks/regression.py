"""Regression: numbers that are right in degrees."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import RELATIVE_ERROR, Metric
from deploypruner.tasks import Array, Task, tasks
from deploypruner.tasks.classification import FEWEST
from deploypruner.tasks.relative import agreement_of, mean_absolute_error, r2, relative_error


@tasks.register("regression")
class Regression(Task):
    """Numbers with labels of the same shape: R2, with MAE and the relative error beside it.

    A budget speaks of points of R2, hundredths of the labels' variance, so that it does not depend on their unit.
    """

    order: ClassVar[int] = 60
    metric: ClassVar[Metric | None] = Metric("R2", unit="", points=100.0)
    agreement_kind: ClassVar[str] = RELATIVE_ERROR

    def takes(self, output: Array) -> bool:
        """Floats."""
        return output.dtype.kind == "f"

    def fits(self, output: Array, labels: Array) -> bool:
        """Labels of the same shape, axes of length 1 left out."""
        return labels.dtype.kind in "fiub" and _plain(labels) == _plain(output)

    def resembles(self, output: Array) -> bool:
        """One number per sample."""
        return output[:1].size == 1

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """R2 (1 is best), MAE in the unit of the labels, and the relative error, sqrt(1 - R2)."""
        wanted = labels.reshape(output.shape)
        return {
            "R2": r2(output, wanted),
            "MAE": mean_absolute_error(output, wanted),
            "relative error": relative_error(output, wanted),
        }

    def agreement(self, output: Array, reference: Array) -> float:
        """1 - relative error."""
        return agreement_of(relative_error(output, reference))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error itself."""
        return {"relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """R2 of 0 is what the mean of the labels has."""
        found = self.scores(output, labels)["R2"]
        if len(output) < FEWEST or found > 0 or not np.ptp(labels):
            return ""
        return f"R2 {found:.3g} on {len(output)} samples, where always answering the labels' mean has 0"


def _plain(array: Array) -> tuple[int, ...]:
    return (len(array), *(size for size in array.shape[1:] if size != 1))
