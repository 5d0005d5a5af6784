"""Binary classification: one score per sample, yes or no."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import ACCURACY, Metric
from deploypruner.tasks import Array, LossKind, Task, tasks
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
    loss: ClassVar[LossKind] = "decisions"

    def takes(self, output: Array) -> bool:
        """One float per sample."""
        return output.dtype.kind == "f" and output.size == len(output)

    def fits(self, output: Array, labels: Array) -> bool:
        """Both 0 and 1, and nothing else."""
        return labels.size == len(output) and set(np.unique(labels).tolist()) == {0, 1}

    def probabilities(self, output: Array) -> bool:
        """All of them in [0, 1]."""
        return between_0_and_1(output)

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Percent of samples with the right decision."""
        return {ACCURACY.name: 100 * float(np.mean(self.right(output, labels, dense)))}

    def right(self, output: Array, labels: Array, dense: Array | None = None) -> Array:
        """Those with the right decision; NaN is never right."""
        said = decisions(output, output if dense is None else dense)
        return np.asarray((said == (labels.reshape(output.shape) > 0)).reshape(-1) & valid(output))

    def agreement(self, output: Array, reference: Array) -> float:
        """Share of samples with the same decision."""
        return float(np.mean(self.same(output, reference)))

    def same(self, output: Array, reference: Array) -> Array:
        """Those with the same decision; NaN never agrees."""
        return np.asarray(
            (decisions(output, reference) == decisions(reference, reference)).reshape(-1) & valid(output)
        )

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
    return np.asarray(output > (0.5 if between_0_and_1(reference) else 0))


def between_0_and_1(scores: Array) -> bool:
    """Do all scores that are finite lie where probabilities do?"""
    finite = scores[np.isfinite(scores)]
    return bool(finite.size) and bool(finite.min() >= 0) and bool(finite.max() <= 1)
