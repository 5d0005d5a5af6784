"""Embedding: a vector whose direction counts."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from deploypruner.tasks import Array, LossKind, Task, tasks
from deploypruner.tasks.classification import are_shares
from deploypruner.tasks.relative import relative_error

_DIMENSIONS = 8
# Share of the dense answers' standard deviation below which a model has stopped to look at its input.
_COLLAPSED = 0.01


@tasks.register("embedding")
class Embedding(Task):
    """Vectors `[N, ...]`: mean over samples of the cosine with the dense model's, and its spread.

    A model that gives every sample the same vector where the dense one does not agrees by 0, whatever the cosine.
    """

    order: ClassVar[int] = 15
    agreement_kind: ClassVar[str] = "cosine"
    loss: ClassVar[LossKind] = "direction"

    def takes(self, output: Array) -> bool:
        """Floats, more than one per sample."""
        return output.dtype.kind == "f" and output.ndim >= 2 and output[:1].size > 1

    def resembles(self, output: Array) -> bool:
        """Rows of length 1, at least 8 wide, that are no probabilities."""
        if output.ndim != 2 or output.shape[1] < _DIMENSIONS:
            return False
        lengths = np.linalg.norm(output.astype(np.float64), axis=1)
        return bool(np.allclose(lengths, 1, atol=1e-3)) and not are_shares(output)

    def agreement(self, output: Array, reference: Array) -> float:
        """Mean cosine; 0 for a model that ignores its input."""
        return 0.0 if _collapsed(output, reference) else float(np.mean(cosines(output, reference)))

    def details(self, output: Array, reference: Array) -> dict[str, float]:
        """Standard deviation, 5th percentile and least of the cosines, and the relative error."""
        found = cosines(output, reference)
        return {
            "cosine sd": float(np.std(found)),
            "cosine p5": float(np.quantile(found, 0.05)),
            "cosine min": float(np.min(found)),
            "relative error": relative_error(output, reference),
        }


def cosines(output: Array, reference: Array) -> Array:
    """`[N]`: two zero vectors agree fully, a zero and a non-zero one or one that is not finite not at all."""
    a = output.reshape(len(output), -1).astype(np.float64)
    b = reference.reshape(len(reference), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    cosine: Array = np.where(both_zero, 1.0, 0.0)
    cosine[usable] = (a[usable] * b[usable]).sum(axis=1) / norms[usable]
    return cosine


def _collapsed(output: Array, reference: Array) -> bool:
    ours, theirs = (float(np.std(array.astype(np.float64), axis=0).mean()) for array in (output, reference))
    return len(output) > 1 and ours < _COLLAPSED * theirs
