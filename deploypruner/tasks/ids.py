"""Integers: classes, indices or masks that the model has decided on itself."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import ACCURACY, Metric
from deploypruner.tasks import Array, Task, tasks


@tasks.register("ids")
class Ids(Task):
    """Integers or truth values of any shape: the share that equals the label, or the dense model's answer."""

    order: ClassVar[int] = 5
    metric: ClassVar[Metric | None] = ACCURACY
    agreement_kind: ClassVar[str] = "same value"

    def takes(self, output: Array) -> bool:
        """Integers and truth values."""
        return output.dtype.kind in "iub"

    def fits(self, output: Array, labels: Array) -> bool:
        """Integers of the same shape."""
        return labels.dtype.kind in "iub" and labels.size == output.size and len(labels) == len(output)

    def resembles(self, output: Array) -> bool:
        """All there are."""
        return True

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Percent of equal values."""
        return {ACCURACY.name: 100 * float(np.mean(output == labels.reshape(output.shape)))}

    def right(self, output: Array, labels: Array, dense: Array | None = None) -> Array | None:
        """Equal values, where a sample has one."""
        return _equal(output, labels.reshape(output.shape))

    def same(self, output: Array, reference: Array) -> Array | None:
        """Equal values, where a sample has one."""
        return _equal(output, reference)

    def agreement(self, output: Array, reference: Array) -> float:
        """Share of equal values."""
        return float(np.mean(output == reference))


def _equal(output: Array, other: Array) -> Array | None:
    return np.asarray(output == other).reshape(-1) if output.size == len(output) else None
