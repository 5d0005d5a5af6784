"""Token classification and language modelling: one class per position, scores on the last axis."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import ACCURACY, Metric
from deploypruner.tasks import Array, LossKind, Task, tasks
from deploypruner.tasks.classification import are_shares
from deploypruner.tasks.relative import relative_error


@tasks.register("tokens")
class Tokens(Task):
    """Scores of K classes at every position, `[N, ..., K]`, with labels `[N, ...]`: accuracy over positions.

    Labels below 0 (usually -100) are left out.
    """

    order: ClassVar[int] = 50
    metric: ClassVar[Metric | None] = ACCURACY
    agreement_kind: ClassVar[str] = "top-1"
    loss: ClassVar[LossKind] = "classes"
    class_axis: ClassVar[int] = -1

    def takes(self, output: Array) -> bool:
        """Floats `[N, ..., K]`, K > 1, with at least one axis of positions."""
        return output.dtype.kind == "f" and output.ndim >= 3 and output.shape[-1] > 1

    def fits(self, output: Array, labels: Array) -> bool:
        """Class indices of the shape of the output without its last axis."""
        if labels.shape != output.shape[:-1] or labels.dtype.kind not in "iub":
            return False
        return bool((labels >= 0).any()) and int(labels.max()) < output.shape[-1]

    def probabilities(self, output: Array) -> bool:
        """Classes of a position add up to 1."""
        return are_shares(output)

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Percent of labelled positions whose largest score is at the label."""
        counted = labels >= 0
        right = (output.argmax(axis=-1) == labels) & ~np.isnan(output).any(axis=-1)
        return {ACCURACY.name: 100 * float(np.mean(right[counted]))}

    def agreement(self, output: Array, reference: Array) -> float:
        """Share of positions with the same largest score."""
        same = output.argmax(axis=-1) == reference.argmax(axis=-1)
        return float(np.mean(same & ~np.isnan(output).any(axis=-1)))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error of the scores."""
        return {"relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """Positions of one sample are not independent, so that the plain share of guessing is what counts."""
        found, guessing = self.scores(output, labels)[ACCURACY.name], 100 / output.shape[-1]
        if found > guessing:
            return ""
        return f"accuracy {found:.1f} % on {len(output)} samples, where guessing has {guessing:.3g} %"
