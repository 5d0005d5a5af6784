"""What widths and residual branches are worth: the change of the loss without them, each measured alone.

Retained importance is not one currency: its sums over residual streams, inner widths and whole blocks differ by
factors. A measured change of the loss is one (`search.measured` draws it out to every width).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploypruner.channels.feasible_widths import Order
from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.graph.inputs import Inputs, batch_size, carries_batch, map_tensors, tensors
from deploypruner.losses import BY_SHAPE, Labels, ModelLoss, labels_at
from deploypruner.progress import Progress, SilentProgress
from deploypruner.search.measured import BranchWorth, GroupWorth, MeasuredWorth
from deploypruner.search.sensitivity import Cut, Sweep
from deploypruner.search.worth_file import MeasuredCuts, WorthFile

Batch = tuple[tuple[Any, ...], Labels]

# Numbers of the inputs that are run at a time: 16 images of 224 x 224, and never more than 32 samples.
_AT_A_TIME = 16 * 3 * 224 * 224
_SAMPLES = 32


def measure_worth(
    graph: Graph,
    order: Order,
    batches: Collection[Batch],
    *,
    loss: ModelLoss | None = None,
    widths: Mapping[str, int] | None = None,
    branches: bool = True,
    file: Path | None = None,
    progress: Progress | None = None,
    dtype: torch.dtype | None = None,
    enough: Callable[[float], bool] = lambda seconds: False,
) -> MeasuredWorth:
    """Measure the change of the loss without half of each group, and without each residual branch.

    Args:
        graph: The traced model; it is not changed.
        order: Group id -> all its channels, the most important first.
        batches: (inputs, labels or None). 256 to 512 samples.
        loss: What an output is off by, from its labels or from the dense network's answer; by shape where None.
        widths: Group id -> channels to leave, 1 to C - 1; the groups to measure. None: half of every group.
        branches: Measure those, too.
        file: Batches that are finished are kept here, and not measured again for the same weights and cuts.
        progress: Counts cuts, one batch after the other.
        dtype: Numbers to compute with, bfloat16 for autocast; None for what this processor is good at.
        enough: Asked before every batch but the first, with the seconds of a batch: end here?

    Raises:
        InputError: There is no batch, labels do not fit, or a loss is not finite (the cut is named).

    Source:
        Ours, after SPDY (arXiv:2201.13096), Puzzletron and LayerMerge (arXiv:2406.12837), which measure each
        replacement alone as well.
    """
    cuts = [*_group_cuts(graph, order, widths), *(_branch_cuts(graph) if branches else ())]
    dtype = dtype or best_dtype()
    loss = loss or BY_SHAPE
    sweep = Sweep(graph, cuts, dtype=dtype)
    progress = progress or SilentProgress()
    saved = WorthFile(file, graph.module, {cut.id: cut.keep for cut in cuts}, f"{dtype} {loss}")
    found = list[MeasuredCuts]()
    progress.start(max(1, len(batches) * len(cuts)), "worth")
    try:
        for number, (inputs, labels) in enumerate(batches, start=1):
            measured = saved.find(inputs, labels)
            if measured is None and found and enough(found[-1].seconds):
                break
            if measured is None:
                about = (number, progress, cuts)
                measured = _measured(graph, sweep, (inputs, labels), loss, about=about)
                saved.add(inputs, labels, measured)
            else:
                progress.advance(len(cuts))
            found.append(measured)
    finally:
        progress.close()
    return _joined(found, cuts)


def best_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies in it, float32 elsewhere.

    Measured on a Zen 4: half the time on ResNet-50. Changes differ by a fifth of their standard errors at most on a
    trained ResNet-56, by up to three on random weights, where everything is small; the order stays.
    """
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else torch.float32


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
    for branch in graph.branches:
        yield Cut(branch.id, {branch.id: np.array([], dtype=np.int64)}, f"no branch '{branch.id}'")


# ---------------------------------------------------------------------- one batch


def _measured(
    graph: Graph,
    sweep: Sweep,
    batch: Batch,
    loss: ModelLoss,
    *,
    about: tuple[int, Progress, Sequence[Cut]],
) -> MeasuredCuts:
    """All cuts on one batch, some samples at a time where the model runs at any batch size."""
    (inputs, labels), (number, progress, cuts) = batch, about
    began = time.monotonic()
    samples = batch_size(inputs)
    size = _samples_at_a_time(inputs) if graph.dynamic_batch else samples
    kind = ""
    changes: dict[str, list[float]] = {cut.id: [] for cut in cuts}
    starts = range(0, samples, size)
    for start in starts:
        some = _samples(inputs, start, start + size)
        some_labels = labels_at(labels, slice(start, start + size))
        dense = sweep.dense(some)
        kind, before = loss.measured(dense, some_labels), loss.of_samples(dense, dense, some_labels)
        _check(before, number, "all channels", hint="check the data for NaN, and that it is normalised as expected")
        for cut, outputs in sweep.cuts(some):
            after = loss.of_samples(outputs, dense, some_labels)
            _check(after, number, cut.said, hint=f"leave it whole with --exclude '{cut.id.partition(':')[0]}'")
            changes[cut.id] += (after - before).tolist()
            if start == starts[-1]:
                progress.advance()
    return MeasuredCuts(kind, samples, time.monotonic() - began, {name: _moments(c) for name, c in changes.items()})


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


def _joined(found: Sequence[MeasuredCuts], cuts: Sequence[Cut]) -> MeasuredWorth:
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
