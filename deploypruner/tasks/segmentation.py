"""Segmentation: one class per pixel."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.records import Metric
from deploypruner.tasks import Array, LossKind, Task, tasks
from deploypruner.tasks.classification import are_shares, resembles_classes
from deploypruner.tasks.relative import relative_error

IGNORED = 255
"""Label of pixels that do not count, as are all below 0."""
_PIXELS = 4096


@tasks.register("segmentation")
class Segmentation(Task):
    """Scores of K classes at every place, `[N, K, ...]`, with labels `[N, ...]`: mIoU, also against dense classes.

    The mean over classes that are in the labels or in the answers of intersection / union over all samples. Labels
    255 (where K <= 255) and below 0 are left out.

    Source:
        Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015, sec. 4.2: the
        union counts pixels over the whole set, not per image.
    """

    order: ClassVar[int] = 40
    metric: ClassVar[Metric | None] = Metric("mIoU")
    agreement_kind: ClassVar[str] = "mIoU"
    loss: ClassVar[LossKind] = "classes"

    def takes(self, output: Array) -> bool:
        """Floats `[N, K, ...]`, K > 1, with at least one axis of places."""
        return output.dtype.kind == "f" and output.ndim >= 3 and output.shape[1] > 1

    def fits(self, output: Array, labels: Array) -> bool:
        """Class indices of the shape of the output without its class axis."""
        wanted = without_channel(labels, output)
        if wanted is None or wanted.dtype.kind not in "iub":
            return False
        counted = wanted[_counts(wanted, output.shape[1])]
        return bool(counted.size) and int(counted.max()) < output.shape[1]

    def resembles(self, output: Array) -> bool:
        """Images of scores that look like those of classes, at up to 4096 places."""
        if output.ndim < 4:
            return False
        places = np.moveaxis(output, 1, -1).reshape(-1, output.shape[1])
        return resembles_classes(places[:: max(1, len(places) // _PIXELS)])

    def probabilities(self, output: Array) -> bool:
        """Classes of a place add up to 1."""
        return are_shares(np.moveaxis(output, 1, -1))

    def scores(self, output: Array, labels: Array, dense: Array | None = None) -> dict[str, float]:
        """The mIoU and the share of right pixels, both in percent."""
        wanted = without_channel(labels, output)
        assert wanted is not None, "the labels fit"
        table = confusion(output, wanted)
        return {"mIoU": 100 * mean_iou(table), "pixel accuracy": 100 * float(np.trace(table) / max(1, table.sum()))}

    def agreement(self, output: Array, reference: Array) -> float:
        """The mIoU with the dense model's classes as labels."""
        return mean_iou(confusion(output, reference.argmax(axis=1)))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """Share of pixels with the dense class, and the relative error of the scores."""
        table = confusion(output, reference.argmax(axis=1))
        same = float(np.trace(table) / max(1, table.sum()))
        return {"same class": same, "relative error": relative_error(output, reference)}

    def by_chance(self, output: Array, labels: Array) -> str:
        """Guessing pixel by pixel has an IoU of 1 / (2 K - 1) where classes are equally frequent."""
        found, guessing = self.scores(output, labels)["mIoU"], 100 / (2 * output.shape[1] - 1)
        if found > guessing:
            return ""
        return f"mIoU {found:.1f} % on {len(output)} samples, where guessing has {guessing:.3g} %"


def without_channel(labels: Array, output: Array) -> Array | None:
    """Labels in the shape `[N, ...]` of the output's places; None where they do not have it."""
    shape = (len(output), *output.shape[2:])
    fits = labels.shape == shape or labels.shape == (len(output), 1, *output.shape[2:])
    return labels.reshape(shape) if fits else None


def confusion(output: Array, labels: Array) -> Array:
    """`[K, K + 1]` counts of pixels: the label's row, the answer's column; the last one is for what is not a number.

    So a pixel with a NaN counts in the union of its label's class and in no intersection.
    """
    classes = output.shape[1]
    table = np.zeros((classes, classes + 1), dtype=np.int64)
    for scores, wanted in zip(output, labels, strict=True):
        answer = np.where(np.isnan(scores).any(axis=0), classes, scores.argmax(axis=0))
        counted = _counts(wanted, classes)
        pairs = wanted[counted].astype(np.int64) * (classes + 1) + answer[counted]
        table += np.bincount(pairs.reshape(-1), minlength=table.size).reshape(table.shape)
    return table


def mean_iou(table: Array) -> float:
    """Mean intersection over union of the classes that occur."""
    classes = len(table)
    both = np.diagonal(table)
    union = table.sum(axis=1) + table[:, :classes].sum(axis=0) - both
    there = union > 0
    return float(np.mean(both[there] / union[there])) if there.any() else 0.0


def _counts(labels: Array, classes: int) -> Array:
    """Which labels count, `bool` of their shape."""
    return np.asarray((labels >= 0) & ((labels != IGNORED) | (classes > IGNORED)))
