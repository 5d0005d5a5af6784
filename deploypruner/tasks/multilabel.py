"""Multi-label classification: any number of K labels per sample."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import Metric
from deploypruner.tasks import Array, LossKind, Task, tasks
from deploypruner.tasks.binary import between_0_and_1, decisions
from deploypruner.tasks.classification import FEWEST
from deploypruner.tasks.relative import relative_error


@tasks.register("multilabel")
class Multilabel(Task):
    """Scores of K labels `[N, K]`, each yes or no: micro-averaged F1, with labels and against the dense decisions.

    Yes is a score above 0, or above 0.5 where all scores lie in [0, 1]. F1 rather than the share of right decisions,
    because most labels are absent most of the time.
    """

    order: ClassVar[int] = 30
    metric: ClassVar[Metric | None] = Metric("F1")
    agreement_kind: ClassVar[str] = "F1"
    loss: ClassVar[LossKind] = "decisions"

    def takes(self, output: Array) -> bool:
        """Floats `[N, K]`."""
        return output.dtype.kind == "f" and output.ndim == 2

    def fits(self, output: Array, labels: Array) -> bool:
        """0 and 1 for every label of every sample."""
        return labels.shape == output.shape and output.shape[1] > 1 and bool(np.isin(labels, (0, 1)).all())

    def probabilities(self, output: Array) -> bool:
        """All of them in [0, 1]."""
        return between_0_and_1(output)

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """F1 over all labels of all samples, and the share of right decisions, both in percent."""
        said, wanted = decisions(output, output if dense is None else dense), labels > 0
        return {"F1": 100 * _f1(said, wanted), "right decisions": 100 * float(np.mean(said == wanted))}

    def agreement(self, output: Array, reference: Array) -> float:
        """F1 against the dense model's decisions."""
        return _f1(decisions(output, reference), decisions(reference, reference))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error of the scores."""
        return {"relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """Does the model find present labels any better than saying yes at random as often as it does?"""
        said, wanted = decisions(output, output), labels > 0
        if len(output) < FEWEST:
            return ""
        if not said.any() or not wanted.any():
            return "" if not wanted.any() else f"F1 0 % on {len(output)} samples: no label is found"
        found, guessing = float(wanted[said].mean()), float(wanted.mean())
        if found > guessing or guessing == 1:
            return ""
        return (
            f"{100 * found:.1f} % of the labels it names are right on {len(output)} samples, "
            f"where guessing has {100 * guessing:.3g} %"
        )


def _f1(said: Array, wanted: Array) -> float:
    """2 TP / (2 TP + FP + FN); 1 where there is nothing to find and nothing was found."""
    both = int(np.count_nonzero(said & wanted))
    either = int(np.count_nonzero(said)) + int(np.count_nonzero(wanted))
    return 2 * both / either if either else 1.0
