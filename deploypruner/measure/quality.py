"""How well an artifact does its job: the metric where there are labels, agreement with the dense model always."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from deploypruner.errors import InputError
from deploypruner.measure.own_metric import OwnMetric
from deploypruner.measure.proportions import changed, share_interval
from deploypruner.records import ACCURACY, OutputQuality, Quality
from deploypruner.runtime import Array, Session
from deploypruner.tasks import tasks as registry
from deploypruner.tasks.recognise import OutputTask, recognise

Labels = Any
"""An array `[n, ...]`, a tuple of them (one per output), or a list of n things that are no arrays; None for none."""
Batch = tuple[list[Array], Labels]
"""One array `[n, ...]` per model input, and labels of the samples, or None."""
Outputs = list[list[Array]]
"""For every batch, one array `[n, ...]` per output."""


def outputs(session: Session, batches: Iterable[Batch]) -> Outputs:
    """Return every output of every batch, `[n, ...]` each.

    A model with a static batch dimension is given pieces of that size, the last one padded.

    Raises:
        InputError: A batch does not fit the declared inputs.
    """
    return [run_batch(session, feeds) for feeds, _ in batches]


def evaluate(
    session: Session,
    batches: Iterable[Batch],
    *,
    reference: Outputs | None = None,
    tasks: Sequence[OutputTask] | None = None,
    metric: OwnMetric | None = None,
) -> Quality:
    """Judge every output of `session` on validation inputs.

    What an output is decides how: see `tasks.recognise` and the tasks themselves. The agreement is that of the output
    that agrees least; the accuracy that of the first output with labels, or the user's own metric. A sample with NaN
    in an output is never right and never agrees.

    Args:
        session: The artifact.
        batches: Validation inputs, all of them labelled or none.
        reference: Outputs of the dense fp32 model for the same batches (see `outputs`); without it `agreement` is
            None.
        tasks: What every output is; recognised from the reference (or from these outputs) and the labels where None.
        metric: The user's own, in place of that of the tasks.

    Raises:
        InputError: No samples, labels on some batches only, a reference that does not match, or a metric that fails.
    """
    ours: Outputs = []
    labels: list[Labels] = []
    for feeds, target in batches:
        ours.append(run_batch(session, feeds))
        labels.append(target)
    names = [spec.name for spec in session.outputs]
    return judge_outputs(ours, labels, names, reference=reference, tasks=tasks, metric=metric)


def judge_outputs(
    ours: Outputs,
    labels: Sequence[Labels],
    names: Sequence[str],
    *,
    reference: Outputs | None = None,
    tasks: Sequence[OutputTask] | None = None,
    metric: OwnMetric | None = None,
) -> Quality:
    """As `evaluate`, of outputs that are there already: one list of arrays per batch, and the outputs' names."""
    if not sum(len(batch[0]) for batch in ours):
        raise InputError("no validation inputs", hint="give a data set with a validation part")
    answers = joined(ours)
    dense = None if reference is None else _matching(reference, ours)
    wanted = joined_labels(labels)
    given = label_list(wanted, len(answers[0]))
    if tasks is None:
        tasks = recognise(list(names), dense or answers, given)
    found = tuple(
        judge_output(output, answer, None if dense is None else dense[number], given)
        for number, (output, answer) in enumerate(zip(tasks, answers, strict=True))
    )
    least = min(found, key=lambda quality: 0.0 if quality.agreement is None else quality.agreement)
    scored = next((quality for quality in found if quality.accuracy is not None), None)
    first = (ACCURACY, None) if scored is None or scored.metric is None else (scored.metric, scored.accuracy)
    if metric is not None:
        first, scored = (metric.metric, None if wanted is None else metric(answers, wanted)), None
    return Quality(
        accuracy=first[1],
        agreement=least.agreement,
        agreement_kind=least.agreement_kind,
        samples=len(answers[0]),
        metric=first[0],
        outputs=found,
        agreement_ci=least.agreement_ci,
        accuracy_ci=None if scored is None else scored.accuracy_ci,
        change=None if scored is None else scored.change,
    )


def judge_output(
    output: OutputTask, answer: Array, reference: Array | None, labels: Sequence[Array | None]
) -> OutputQuality:
    """Judge one output against the dense model's, and against its labels where it has some.

    Args:
        output: What it is.
        answer: `[N, ...]`.
        reference: The dense model's; None for no agreement. One of another shape does not agree at all.
        labels: As `recognise` was given them.
    """
    task = registry.get(output.task)()
    agreement, details = None, {}
    dense = reference if reference is not None and reference.shape == answer.shape else None
    if reference is not None:
        agreement = 0.0 if dense is None else task.agreement(answer, dense)
        details = {} if dense is None else task.details(answer, dense)
    wanted = None if output.label is None or output.label >= len(labels) else labels[output.label]
    scores = task.scores(answer, wanted, dense) if task.metric is not None and wanted is not None else {}
    same = None if dense is None else task.same(answer, dense)
    right = None if not scores or wanted is None else task.right(answer, wanted, dense)
    theirs = None if right is None or wanted is None or dense is None else task.right(dense, wanted, dense)
    return OutputQuality(
        output=output.output,
        task=output.task,
        agreement=agreement,
        agreement_kind=task.agreement_kind,
        details=_finite(details),
        metric=task.metric if scores else None,
        accuracy=scores[task.metric.name] if task.metric is not None and scores else None,
        scores=_finite(scores),
        agreement_ci=None if same is None else share_interval(same),
        accuracy_ci=None if right is None else share_interval(right, whole=100.0),
        change=None if right is None or theirs is None else changed(right, theirs),
    )


def by_chance(
    tasks: Sequence[OutputTask], answers: Sequence[Array], labels: Sequence[Array | None]
) -> Iterator[tuple[OutputTask, str]]:
    """Outputs that do no better than chance on their labels, and how well they do.

    Args:
        tasks: What every output is.
        answers: `[N, ...]` each.
        labels: As `recognise` was given them.
    """
    for output, answer in zip(tasks, answers, strict=True):
        wanted = None if output.label is None or output.label >= len(labels) else labels[output.label]
        if wanted is not None and (said := registry.get(output.task)().by_chance(answer, wanted)):
            yield output, said


def run_batch(session: Session, feeds: Sequence[Array]) -> list[Array]:
    """Every output for one batch, in pieces of the model's own size where that is fixed."""
    if not feeds:
        raise InputError("a batch without input arrays")
    count = len(feeds[0])
    declared = session.inputs[0].shape[0] if session.inputs[0].shape else None
    if declared is None or declared == count:
        return session.run(feeds)
    pieces = [session.run(_piece(feeds, slice(start, start + declared))) for start in range(0, count, declared)]
    return [np.concatenate(parts)[:count] for parts in zip(*pieces, strict=True)]


def joined(batches: Sequence[Sequence[Array]]) -> list[Array]:
    """One array per output over all batches; outputs without an axis for samples become one row per batch."""
    return [np.concatenate([np.atleast_1d(part) for part in parts]) for parts in zip(*batches, strict=True)]


def label_list(labels: Labels, count: int) -> list[Array | None]:
    """Labels as `recognise` takes them; those that are no numbers are for the user's own metric alone.

    Raises:
        InputError: Not one label per sample.
    """
    if labels is None:
        return []
    parts = list(labels) if isinstance(labels, tuple) else [labels]
    found = [part if isinstance(part, np.ndarray) and part.dtype.kind in "biuf" else None for part in parts]
    for part in found:
        if part is not None and (not part.ndim or len(part) != count):
            raise InputError(f"labels have shape {list(part.shape)}, expected [{count}]")
    return found


def _piece(feeds: Sequence[Array], rows: slice) -> list[Array]:
    """Cut `rows` out of every array that has a row per sample, repeating the last row to fill up."""
    count, size = len(feeds[0]), rows.stop - rows.start
    picks = np.minimum(np.arange(rows.start, rows.start + size), count - 1)
    return [array[picks] if array.ndim and len(array) == count else array for array in feeds]


def _matching(reference: Outputs, ours: Outputs) -> list[Array]:
    """The reference joined; each batch must have as many outputs and samples as ours."""
    theirs = [[len(np.atleast_1d(part)) for part in batch] for batch in reference]
    wanted = [[len(np.atleast_1d(part)) for part in batch] for batch in ours]
    if theirs != wanted:
        pairs = zip(reference, ours, strict=False)
        wrong = next((pair for pair in pairs if [len(p) for p in pair[0]] != [len(p) for p in pair[1]]), None)
        what = (
            f"shape {_shapes(wrong[0])} against {_shapes(wrong[1])}"
            if wrong
            else f"{len(reference)} batches against {len(ours)}"
        )
        raise InputError(
            f"the reference outputs do not match: {what}", hint="take them from the same batches in order"
        )
    return joined(reference)


def _shapes(batch: Sequence[Array]) -> str:
    return ", ".join(str(list(part.shape)) for part in batch)


def joined_labels(labels: Sequence[Labels]) -> Labels:
    """All labels in the form of one batch's: an array, a tuple of arrays, or a list with an entry per sample."""
    known = [target for target in labels if target is not None]
    if known and len(known) < len(labels):
        raise InputError(f"{len(known)} of {len(labels)} validation batches have labels", hint="label all or none")
    if not known:
        return None
    if isinstance(known[0], np.ndarray):
        return np.concatenate(known)
    if isinstance(known[0], tuple):
        return tuple(joined_labels(list(parts)) for parts in zip(*known, strict=True))
    if isinstance(known[0], Mapping):
        return {key: joined_labels([part[key] for part in known]) for key in known[0]}
    return [entry for part in known for entry in part]


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
