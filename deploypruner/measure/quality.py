"""How well an artifact does its job: accuracy where there are labels, agreement with the dense model always."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import InputError
from deploypruner.records import Quality
from deploypruner.runtime import Array, Session

Batch = tuple[list[Array], Array | None]
"""One array `[n, ...]` per model input, and labels `[n]` or None."""


def outputs(session: Session, batches: Iterable[Batch]) -> list[Array]:
    """Return the first output of every batch, `[n, ...]` each.

    A model with a static batch dimension is given pieces of that size, the last one padded.

    Raises:
        InputError: A batch does not fit the declared inputs.
    """
    return [_first_output(session, feeds) for feeds, _ in batches]


def evaluate(session: Session, batches: Iterable[Batch], *, reference: Sequence[Array] | None = None) -> Quality:
    """Judge the first output of `session` on validation inputs.

    An output `[n, K]` with K > 1 is taken as class scores: top-1 accuracy in percent where there are
    labels, and the fraction of samples with the reference's top-1. Any other output is compared by the
    mean cosine of each sample with the reference. A sample with NaN in its output is never right and
    never agrees.

    Args:
        session: The artifact.
        batches: Validation inputs, all of them labelled or none.
        reference: First outputs of the dense fp32 model for the same batches (see `outputs`); without
            it `agreement` is None.

    Raises:
        InputError: No samples, labels on some batches only, or a reference that does not match.
    """
    ours: list[Array] = []
    labels: list[Array | None] = []
    for feeds, target in batches:
        ours.append(_first_output(session, feeds))
        labels.append(target)
    if not sum(len(output) for output in ours):
        raise InputError("no validation inputs", hint="give a data set with a validation part")
    output = np.concatenate(ours)
    classes = output.ndim == 2 and output.shape[1] > 1
    other = None if reference is None else _matching(reference, ours)
    return Quality(
        accuracy=_accuracy(output, _joined(labels)) if classes else None,
        agreement=None if other is None else (_top1_agreement if classes else _mean_cosine)(output, other),
        agreement_kind="top-1" if classes else "cosine",
        samples=len(output),
    )


def _first_output(session: Session, feeds: Sequence[Array]) -> Array:
    if not feeds:
        raise InputError("a batch without input arrays")
    count = len(feeds[0])
    declared = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if declared is None or declared == count:
        return session.run(feeds)[0]
    pieces = [_piece(feeds, slice(start, start + declared)) for start in range(0, count, declared)]
    return np.concatenate([session.run(piece)[0] for piece in pieces])[:count]


def _piece(feeds: Sequence[Array], rows: slice) -> list[Array]:
    """Cut `rows` out of every array that has a row per sample, repeating the last row to fill up."""
    count, size = len(feeds[0]), rows.stop - rows.start
    picks = np.minimum(np.arange(rows.start, rows.start + size), count - 1)
    return [array[picks] if array.ndim and len(array) == count else array for array in feeds]


def _matching(reference: Sequence[Array], ours: Sequence[Array]) -> Array:
    theirs = [array.shape for array in reference]
    shapes = [array.shape for array in ours]
    if theirs != shapes:
        wrong = next((pair for pair in zip(theirs, shapes, strict=False) if pair[0] != pair[1]), None)
        what = (
            f"shape {list(wrong[0])} against {list(wrong[1])}"
            if wrong
            else f"{len(theirs)} batches against {len(shapes)}"
        )
        raise InputError(
            f"the reference outputs do not match: {what}", hint="take them from the same batches in order"
        )
    return np.concatenate(list(reference))


def _joined(labels: Sequence[Array | None]) -> Array | None:
    known = [target for target in labels if target is not None]
    if known and len(known) < len(labels):
        raise InputError(f"{len(known)} of {len(labels)} validation batches have labels", hint="label all or none")
    return np.concatenate(known) if known else None


def _accuracy(output: Array, labels: Array | None) -> float | None:
    if labels is None:
        return None
    if labels.shape != (len(output),):
        raise InputError(f"labels have shape {list(labels.shape)}, expected [{len(output)}]")
    return 100 * float(np.mean((output.argmax(axis=1) == labels) & _valid(output)))


def _top1_agreement(output: Array, reference: Array) -> float:
    return float(np.mean((output.argmax(axis=1) == reference.argmax(axis=1)) & _valid(output)))


def _mean_cosine(output: Array, reference: Array) -> float:
    """Mean over samples; two zero vectors agree fully, a zero and a non-zero one not at all."""
    a = output.reshape(len(output), -1).astype(np.float64)
    b = reference.reshape(len(reference), -1).astype(np.float64)
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    usable = np.isfinite(norms) & (norms > 0)
    cosine: Array = np.where(both_zero, 1.0, 0.0)
    cosine[usable] = (a[usable] * b[usable]).sum(axis=1) / norms[usable]
    return float(np.mean(cosine))


def _valid(output: Array) -> NDArray[np.bool_]:
    return np.asarray(~np.isnan(output.reshape(len(output), -1)).any(axis=1))
