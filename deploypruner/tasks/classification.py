"""Classification: one class per sample, the largest of K scores."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.special import bdtrc

from deploypruner.records import ACCURACY, Metric
from deploypruner.tasks import Array, LossKind, Task, tasks
from deploypruner.tasks.relative import relative_error

# Where there are no labels: share of samples with one answer and share of variance between classes rather than
# samples, from which on, and mean probability of the answer, up to which scores do not look like those of classes.
_SAME_ANSWER, _BETWEEN, _UNSURE = 0.9, 0.5, 0.3
# Chance that a guessing model does as well as was seen; above it nothing shows that the dense model knows classes.
_LUCK = 0.05
FEWEST = 20
"""Samples below which nobody can say that a model does no better than chance."""


@tasks.register("classification")
class Classification(Task):
    """Scores of K classes `[N, K]`: top-1 accuracy, and the share of samples with the dense model's top-1."""

    order: ClassVar[int] = 20
    metric: ClassVar[Metric | None] = ACCURACY
    agreement_kind: ClassVar[str] = "top-1"
    loss: ClassVar[LossKind] = "classes"

    def takes(self, output: Array) -> bool:
        """Floats `[N, K]`, K > 1."""
        return output.dtype.kind == "f" and output.ndim == 2 and output.shape[1] > 1

    def fits(self, output: Array, labels: Array) -> bool:
        """Class indices `[N]` below K, or one-hot rows `[N, K]`."""
        if labels.shape == output.shape and np.isin(labels, (0, 1)).all():
            return bool((labels.sum(axis=1) == 1).all())
        return is_classes(labels.reshape(len(labels), -1), output.shape[1]) and labels.size == len(output)

    def resembles(self, output: Array) -> bool:
        """Are these scores of a trained classifier, going by their values?"""
        return resembles_classes(output)

    def probabilities(self, output: Array) -> bool:
        """Rows that add up to 1."""
        return are_shares(output)

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """Percent of samples whose largest score is at the label; NaN is never right."""
        return {ACCURACY.name: 100 * float(np.mean(self.right(output, labels)))}

    def right(self, output: Array, labels: Array, dense: Array | None = None) -> Array:
        """Those whose largest score is at the label; NaN is never right."""
        wanted = labels.argmax(axis=1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
        return np.asarray((output.argmax(axis=1) == wanted) & valid(output))

    def agreement(self, output: Array, reference: Array) -> float:
        """Share of samples with the same largest score; NaN never agrees."""
        return float(np.mean(self.same(output, reference)))

    def same(self, output: Array, reference: Array) -> Array:
        """Those with the same largest score; NaN never agrees."""
        return np.asarray((output.argmax(axis=1) == reference.argmax(axis=1)) & valid(output))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """The relative error of the scores."""
        return {"relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """One-sided binomial test at 5 % against a model that guesses among K classes."""
        count, classes = len(output), output.shape[1]
        right = int(self.right(output, labels).sum())
        if not is_luck(right, count, 1 / classes):
            return ""
        return f"accuracy {100 * right / count:.1f} % on {count} samples, where guessing has {100 / classes:.3g} %"


def is_classes(labels: Array, classes: int) -> bool:
    """Are these integers from 0 to `classes` - 1?"""
    return labels.dtype.kind in "iub" and bool(labels.size) and 0 <= labels.min() <= labels.max() < classes


def resembles_classes(scores: Array) -> bool:
    """Do scores `[n, K]` look like those of a classifier that has learned something?

    They do if they are probabilities; else the answer differs between samples, scores vary between samples rather
    than between classes (those of a box always have the same largest number), and softmax of them is sure. A model
    with random weights fails, and so do key points and most embeddings.
    """
    if not np.isfinite(scores).all():
        return False
    scores = scores.astype(np.float64)
    shares = np.bincount(scores.argmax(axis=1), minlength=scores.shape[1]) / len(scores)
    if len(scores) >= 8 and shares.max() >= _SAME_ANSWER:
        return False
    if are_shares(scores):
        return True
    centred = scores - scores.mean(axis=1, keepdims=True)  # adding a number to all scores changes no class
    total = float(np.square(centred).sum())
    between = len(scores) * float(np.square(centred.mean(axis=0)).sum())
    if len(scores) >= 8 and between > _BETWEEN * total:
        return False
    largest = 1 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    return float(largest.mean()) >= max(_UNSURE, min(0.5, 1.5 / scores.shape[1]))


def are_shares(scores: Array) -> bool:
    """Are these `[..., K]` at least 0, and 1 together along the last axis?"""
    return bool((scores >= 0).all()) and np.allclose(scores.sum(axis=-1, dtype=np.float64), 1, atol=1e-3)


def is_luck(right: int, count: int, chance: float) -> bool:
    """Does guessing get at least `right` of `count` right more often than once in 20 times?

    Never where there are fewer than 20 samples: they show nothing in either direction.
    """
    if count < FEWEST:
        return False
    return bool(bdtrc(right - 1, count, chance) > _LUCK)


def valid(output: Array) -> Array:
    """`[N]` bool: samples without NaN."""
    return np.asarray(~np.isnan(output.reshape(len(output), -1)).any(axis=1))
