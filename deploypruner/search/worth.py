"""What widths and residual branches are worth: the change of the loss without them, each measured alone.

Retained importance is not one currency: its sums over residual streams, inner widths and whole blocks differ by
factors. A measured change of the loss is one. The criterion still says which channels go first, and the shape of the
loss between the measured width and the others.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs, batch_size, carries_batch, map_tensors, tensors
from deploypruner.progress import Progress, SilentProgress
from deploypruner.prune.room import Order
from deploypruner.recover.losses import label_loss
from deploypruner.search.choices import Floats
from deploypruner.search.sensitivity import Cut, Sweep
from deploypruner.search.worth_file import Measured, WorthFile

Batch = tuple[tuple[Any, ...], Tensor | None]
Kind = Literal["loss", "KL to the dense outputs", "relative error of the outputs"]

# Numbers of the inputs that are run at a time: 16 images of 224 x 224, and never more than 32 samples.
_AT_A_TIME = 16 * 3 * 224 * 224
_SAMPLES = 32
# What a width costs at the least, in nats: a measurement of 256 samples does not tell less from nothing.
_LEAST = 1e-4
# Share of a square law in every curve, for criteria that call all channels behind the measured width worthless.
_SQUARE = 1e-3


@dataclass(frozen=True)
class GroupWorth:
    """What the channels behind one width are worth.

    Args:
        width: Channels that were left.
        change: Of the loss without the others, mean over the samples.
        error: Standard error of that mean.
    """

    width: int
    change: float
    error: float


@dataclass(frozen=True)
class BranchWorth:
    """What a residual branch is worth.

    Args:
        change: Of the loss without it, mean over the samples.
        error: Standard error of that mean.
    """

    change: float
    error: float


@dataclass(frozen=True)
class MeasuredWorth:
    """Every cut alone, measured on data with batch-norm statistics as they were.

    Args:
        kind: What changed: the cross-entropy with the labels, in nats; the divergence from the dense network's class
            probabilities, in nats; or the squared error of all outputs over the mean square of the dense ones.
        samples: It was measured on.
        groups: Group id -> at one width.
        branches: Branch id -> without it.
        seconds: It took, pauses left out.
    """

    kind: Kind
    samples: int
    groups: Mapping[str, GroupWorth]
    branches: Mapping[str, BranchWorth]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """As a document."""
        return asdict(self)

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> MeasuredWorth:
        """The opposite of `to_json`."""
        groups = {name: GroupWorth(**worth) for name, worth in document["groups"].items()}
        branches = {name: BranchWorth(**worth) for name, worth in document["branches"].items()}
        return MeasuredWorth(document["kind"], document["samples"], groups, branches, document["seconds"])


@dataclass(frozen=True)
class Losses:
    """Predicted change of the loss, to be added up over what a plan does.

    Args:
        groups: Group id -> `[C + 1]`, when 0, 1, ... C channels of its order are left; not increasing, last 0.
        branches: Branch id -> without it; its groups then cost nothing.
    """

    groups: Mapping[str, Floats]
    branches: Mapping[str, float]


def measure_worth(
    graph: Graph,
    order: Order,
    batches: Collection[Batch],
    *,
    widths: Mapping[str, int] | None = None,
    branches: bool = True,
    file: Path | None = None,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
) -> MeasuredWorth:
    """Measure the change of the loss without half of each group, and without each residual branch.

    Args:
        graph: The traced model; it is not changed.
        order: Group id -> all its channels, the most important first.
        batches: (inputs, labels or None); with labels the loss is the cross-entropy, without it is the distance from
            the dense network's outputs. 256 to 512 samples.
        widths: Group id -> channels to leave, 1 to C - 1; the groups to measure. None: half of every group.
        branches: Measure those, too.
        file: Batches that are finished are kept here, and not measured again for the same weights and cuts.
        progress: Counts cuts, one batch after the other.
        dtype: Numbers to compute with, bfloat16 for autocast; None for what this processor is good at.

    Raises:
        InputError: There is no batch, labels do not fit, or a loss is not finite (the cut is named).

    Source:
        Ours, after SPDY (arXiv:2201.13096), Puzzletron and LayerMerge (arXiv:2406.12837), which measure each
        replacement alone as well.
    """
    cuts = [*_group_cuts(graph, order, widths), *(_branch_cuts(graph) if branches else ())]
    dtype = dtype or best_dtype(graph)
    sweep = Sweep(graph, cuts, dtype=dtype)
    progress = progress or SilentProgress()
    saved = WorthFile.of(file, graph.module, {cut.id: cut.keep for cut in cuts}, str(dtype))
    found = []
    progress.start(max(1, len(batches) * len(cuts)), "worth")
    try:
        for number, (inputs, labels) in enumerate(batches, start=1):
            measured = saved.find(inputs, labels)
            if measured is None:
                measured = _measured(graph, sweep, inputs, labels, number=number, progress=progress, cuts=cuts)
                saved.add(inputs, labels, measured)
            else:
                progress.advance(len(cuts))
            found.append(measured)
    finally:
        progress.close()
    return _joined(found, cuts)


def losses(
    graph: Graph, worth: MeasuredWorth, scores: Mapping[str, Tensor], order: Order, *, least: float = _LEAST
) -> Losses:
    """What every width of the measured groups, and the lack of every branch, is predicted to cost.

    L(w) = max(l, least) T(w) / T(h), l measured at width h. T is the criterion's sum over the C - w channels that go
    (scores below zero count as 0) plus a thousandth of a square law, (1 - w / C)^2 T(0), so that no ratio is endless
    where the criterion calls the second half of the order worthless. A branch: max(change, 0).

    Args:
        graph: The traced model.
        worth: What was measured.
        scores: Group id -> `[C]`, larger means keep.
        order: Group id -> channels, those that stay longest first; the one it was measured with.
        least: What the measured width costs at the least.

    Source:
        The square law is SPDY's prior, arXiv:2201.13096, sec. 3.3; the scaling to the measurement is ours.
    """
    curves = {}
    for name, at in worth.groups.items():
        score = scores[name].double().clamp_min(0).numpy()[order[name]]
        gone = np.concatenate([np.cumsum(score[::-1])[::-1], [0.0]])
        square = (1 - np.arange(len(gone)) / graph.group(name).size) ** 2
        shape = gone + _SQUARE * (gone[0] or 1.0) * square
        curves[name] = max(at.change, least) * shape / shape[at.width]
    return Losses(curves, {name: max(branch.change, 0.0) for name, branch in worth.branches.items()})


def best_dtype(graph: Graph) -> torch.dtype:
    """bfloat16 where the processor multiplies in it and the network is large enough for that to matter."""
    return torch.float32


# ---------------------------------------------------------------------- what is cut


def _group_cuts(graph: Graph, order: Order, widths: Mapping[str, int] | None) -> Iterator[Cut]:
    for group in graph.groups:
        width = group.size // 2 if widths is None else widths.get(group.id, 0)
        if not 0 < width < group.size:
            continue
        kept = set(order[group.id][:width].tolist())
        kept |= graph.emptied({group.id: np.sort(order[group.id][:width])}, order).get(group.id, set())
        if len(kept) < group.size:
            said = f"{len(kept)} of {group.size} channels of '{group.id}'"
            yield Cut(group.id, {group.id: np.array(sorted(kept), dtype=np.int64)}, said)


def _branch_cuts(graph: Graph) -> Iterator[Cut]:
    for branch in getattr(graph, "branches", ()):
        yield Cut(branch.id, {branch.id: np.array([], dtype=np.int64)}, f"no branch '{branch.id}'")


# ---------------------------------------------------------------------- one batch


def _measured(
    graph: Graph,
    sweep: Sweep,
    inputs: Inputs,
    labels: Tensor | None,
    *,
    number: int,
    progress: Progress,
    cuts: Sequence[Cut],
) -> Measured:
    """All cuts on one batch, some samples at a time where the model runs at any batch size."""
    began = time.monotonic()
    samples = batch_size(inputs)
    size = _samples_at_a_time(inputs) if graph.dynamic_batch else samples
    kind: Kind = "loss"
    changes: dict[str, list[float]] = {cut.id: [] for cut in cuts}
    starts = range(0, samples, size)
    for start in starts:
        some = _samples(inputs, start, start + size)
        some_labels = None if labels is None else labels[start : start + size]
        dense = sweep.dense(some)
        kind, before = _sample_losses(dense, dense, some_labels)
        _check(before, number, "all channels", hint="check the data for NaN, and that it is normalised as expected")
        for cut, outputs in sweep.cuts(some):
            after = _sample_losses(outputs, dense, some_labels)[1]
            _check(after, number, cut.said, hint=f"leave it whole with --exclude '{cut.id.partition(':')[0]}'")
            changes[cut.id] += (after - before).tolist()
            if start == starts[-1]:
                progress.advance()
    return Measured(kind, samples, time.monotonic() - began, {name: _moments(c) for name, c in changes.items()})


def _sample_losses(outputs: list[Tensor], dense: list[Tensor], labels: Tensor | None) -> tuple[Kind, Tensor]:
    """What is measured, and `[N]` of it in float64; for one sample where an output has no batch axis."""
    first, wanted = outputs[0].double(), dense[0].double()
    if labels is not None:
        label_loss(first, labels)
        each = F.cross_entropy(first, labels.long(), reduction="none")
        return "loss", each.flatten(1).mean(dim=1) if each.ndim > 1 else each
    if first.ndim == 2 and first.shape[1] > 1:
        each = F.kl_div(first.log_softmax(1), wanted.log_softmax(1), reduction="none", log_target=True)
        return "KL to the dense outputs", each.sum(dim=1)
    errors = [_relative(o.double(), d.double()) for o, d in zip(outputs, dense, strict=True) if d.is_floating_point()]
    return "relative error of the outputs", torch.stack(errors).mean(dim=0)


def _relative(output: Tensor, dense: Tensor) -> Tensor:
    scale = dense.square().mean().clamp_min(torch.finfo(dense.dtype).tiny)
    return (output - dense).square().reshape(len(dense) if dense.ndim else 1, -1).mean(dim=1) / scale


def _check(values: Tensor, number: int, said: str, *, hint: str) -> None:
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"with {said} the loss of worth batch {number} is not finite", hint=hint)


def _samples_at_a_time(inputs: Inputs) -> int:
    numbers = sum(t.numel() for t in tensors(inputs)) // max(1, batch_size(inputs))
    return max(1, min(_SAMPLES, _AT_A_TIME // max(1, numbers)))


def _samples(inputs: Inputs, start: int, stop: int) -> Inputs:
    return map_tensors(lambda t: t[start:stop] if carries_batch(t, inputs) else t, inputs)


def _moments(changes: Sequence[float]) -> tuple[float, float]:
    """Sum, and sum of squares."""
    values = np.array(changes)
    return float(values.sum()), float(np.square(values).sum())


def _joined(found: Sequence[Measured], cuts: Sequence[Cut]) -> MeasuredWorth:
    """Means and standard errors over all batches."""
    if not found:
        raise InputError("there are no images to measure the worth of widths and branches on", hint="check --data")
    samples = sum(part.samples for part in found)
    groups, branches = {}, {}
    for cut in cuts:
        total, squares = (sum(part.moments[cut.id][i] for part in found) for i in (0, 1))
        mean = total / samples
        error = sqrt(max(0.0, squares / samples - mean**2) / max(1, samples - 1))
        assert isfinite(mean), f"{cut.id} was checked"
        kept = cut.keep[cut.id]
        if len(kept):
            groups[cut.id] = GroupWorth(len(kept), mean, error)
        else:
            branches[cut.id] = BranchWorth(mean, error)
    return MeasuredWorth(found[0].kind, samples, groups, branches, sum(part.seconds for part in found))
