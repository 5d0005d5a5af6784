"""Binary classification: one score per sample, yes or no."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import ACCURACY, Metric
from deploypruner.tasks import Array, Task, tasks
from deploypruner.tasks.classification import is_luck, valid
from deploypruner.tasks.relative import relative_error


@tasks.register("binary")
class Binary(Task):
    """One score per sample, `[N]` or `[N, 1]`, with labels 0 and 1: accuracy, and the share of the same decisions.

    Yes is a score above 0, or above 0.5 where all of the dense model's lie in [0, 1].
    """

    order: ClassVar[int] = 10
    metric: ClassVar[Metric | None] = ACCURACY
    agreement_kind: ClassVar[str] = "same decision"

    def takes(self, output: Array) -> bool:
        """One float per sample."""
        return output.dtype.kind == "f" and output.size == len(output)

    def fits(self, output: Array, labels: Array) -> bool:
        """Both 0 and 1, and nothing else."""
        return labels.size == len(output) and set(np.unique(labels).tolist()) == {0, 1}

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Percent of samples with the right decision."""
        right = (decisions(output, output if dense is None else dense) == (labels.reshape(output.shape) > 0)).reshape(
            -1
        ) & valid(output)
        return {ACCURACY.name: 100 * float(np.mean(right))}

    def agreement(self, output: Array, reference: Array) -> float:
        """Share of samples with the same decision."""
        same = (decisions(output, reference) == decisions(reference, reference)).reshape(-1)
        return float(np.mean(same & valid(output)))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error of the scores."""
        return {"relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """One-sided binomial test at 5 % against tossing a coin."""
        count = len(output)
        accuracy = self.scores(output, labels)[ACCURACY.name]
        if not is_luck(round(accuracy * count / 100), count, 0.5):
            return ""
        return f"accuracy {accuracy:.1f} % on {count} samples, where guessing has 50 %"


def decisions(output: Array, reference: Array) -> Array:
    """Yes or no for every score; the reference says whether scores are probabilities."""
    finite = reference[np.isfinite(reference)]
    probabilities = bool(finite.size) and finite.min() >= 0 and finite.max() <= 1
    return np.asarray(output > (0.5 if probabilities else 0))
