"""Prove a removal: the masked dense model and the removed module give the same outputs.

Both run in float64 on two sets of inputs, each parameter converted when it is needed and freed after that, so the
proof costs four forward passes of a few samples and no copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import torch
from torch import Tensor, nn

from deploypruner.channels.masking import masked_module
from deploypruner.channels.planned import Planned
from deploypruner.channels.proof.first_divergence import first_difference, place
from deploypruner.channels.proof.masked_reference import Masked
from deploypruner.channels.proof.memory import fits, lacks_memory
from deploypruner.channels.proof.probes import probe
from deploypruner.graph import Graph
from deploypruner.graph.execute.float64_interpreter import Streamed, TensorRunner, runner
from deploypruner.graph.inputs import Inputs
from deploypruner.graph.largest_gap import largest_gap, magnitude
from deploypruner.graph.open_axes import at_other_lengths, at_text
from deploypruner.graph.reference import said
from deploypruner.records import Check

# Of the largest value of an output. Rounding through hundreds of layers is 10 to 1,000 units in the last place:
# 1e-15 to 1e-13 in float64, 1e-6 to 1e-4 in float32. A wrong index gives 1e-3 to 1.
_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-3}
# An output beside a much larger one may be a difference of large numbers: it is judged by a part of the larger.
_SMALL_OUTPUT = 1e-3
# Outputs that hardly depend on the input agree whatever was removed.
_WEAK_SIGNAL = 1e-6
_SAMPLES = (2, 3)
# The lengths of a weight norm are scaled where directions shrink, and rounded to float32: 6e-8 in each.
_ROUNDED = {torch.float64: 1e5, torch.float32: 1.0}


@dataclass(frozen=True)
class _Outcome:
    """What two forms computed on the same inputs, or why one of them did not."""

    inputs: Inputs
    wanted: list[Tensor]
    got: list[Tensor]
    problem: str = ""


def prove(graph: Graph, plan: Planned, module: nn.Module) -> tuple[Check, ...]:
    """Compare the dense model in which everything the plan removes counts for nothing with the module without it.

    Inputs are the example's with noise added (a batch of equal samples proves little): 2 and 3 samples where the
    batch is dynamic, twice the example's number where it is not; where other axes are open, a third set has other
    lengths there. For a traced graph the masked form is `masked_reference.Masked`; for a model that torch-pruning
    traced it is a copy with zeros in its parameters. Neither `graph.module` nor `module` is changed. Where float64
    does not fit in memory float32 is used, and the names of the checks say so.

    Args:
        graph: The dense model.
        plan: What stays.
        module: What `graph.cut` made of it, in eval mode.

    Returns:
        One check per set of inputs. The detail of a failed one names the first operator that differs.
    """

    def attempt(dtype: torch.dtype) -> tuple[Check, ...]:
        traced = graph.front_end == "torch.export"
        masked = Masked(graph, plan.keep, dtype) if traced else masked_module(graph, plan.keep, dtype)
        return _checks(graph, masked, runner(module, dtype), dtype)

    samples = max(_SAMPLES) if graph.dynamic_batch else None
    return _in_memory("masked = removed", attempt, float64=fits(graph.module, samples, torch.float64))


def compare_modules(name: str, left: nn.Module, right: nn.Module, inputs: Inputs) -> Check:
    """Compare two modules in float64 on inputs like these, in eval mode; neither is changed.

    A module that raises fails the check, and the detail says which one and why.

    Args:
        name: Name of the check, in a person's words: "your class = the rewritten graph".
        left: What is judged.
        right: What it must equal.
        inputs: Example inputs; noise is added.
    """

    def attempt(dtype: torch.dtype) -> tuple[Check, ...]:
        names = ("the second module", "the first module")
        outcome = _run(names, lambda: (runner(right, dtype), runner(left, dtype)), probe(inputs, None, seed=0))
        return (_check(name, outcome, dtype),)

    return _in_memory(name, attempt, float64=True)[0]


def _in_memory(name: str, attempt: Callable[[torch.dtype], tuple[Check, ...]], *, float64: bool) -> tuple[Check, ...]:
    """Checks in float64, else in float32, else one that failed for want of memory."""
    reason = ""
    for dtype in (torch.float64, torch.float32) if float64 else (torch.float32,):
        try:
            return attempt(dtype)
        except (MemoryError, RuntimeError, TypeError) as error:
            if not lacks_memory(error):
                raise
            reason = said(error)
    return (_failed(name, f"not enough memory to compare: {reason}"),)


def _checks(graph: Graph, masked: TensorRunner, removed: TensorRunner, dtype: torch.dtype) -> tuple[Check, ...]:
    sizes = _SAMPLES if graph.dynamic_batch else (None, None)
    second = f", batch of {sizes[1]}" if graph.dynamic_batch else ", other inputs"
    kind = str(dtype).removeprefix("torch.")
    outcomes = [
        _compared(masked, removed, graph.example_inputs, samples=samples, seed=seed)
        for seed, samples in enumerate(sizes)
    ]
    signal = _signal(outcomes[0].wanted, outcomes[1].wanted)
    suffixes = ["", second]
    if graph.open_axes:
        other = at_other_lengths(graph.example_inputs, graph.open_axes)
        outcomes.append(_compared(masked, removed, other, samples=None, seed=2))
        suffixes.append(f", {at_text(graph.open_axes)}")
    checks = []
    for suffix, outcome in zip(suffixes, outcomes, strict=True):
        slack = _ROUNDED[dtype] if graph.labelling.normed else 1.0
        check = _check(f"masked = removed ({kind}{suffix})", outcome, dtype, signal, slack)
        if not check.passed and not outcome.problem and isinstance(masked, Masked) and isinstance(removed, Streamed):
            found = first_difference(masked, removed, outcome.inputs, slack * _TOLERANCE[dtype])
            check = Check(check.name, check.max_abs_diff, check.tolerance, passed=False, detail=found or check.detail)
        checks.append(check)
    return tuple(checks)


def _compared(
    masked: TensorRunner, removed: TensorRunner, example: Inputs, *, samples: int | None, seed: int
) -> _Outcome:
    names = ("the masked model", "the removed module")
    outcome = _run(names, lambda: (masked, removed), probe(example, samples, seed))
    if not outcome.problem and not all(_is_finite(t) for t in outcome.wanted):
        # Noise took a value out of the range of a logarithm or a root.
        milder = probe(example, samples, seed, "scaled")
        outcome = _run(names, lambda: (masked, removed), milder)
    return outcome


def _run(names: tuple[str, str], forms: Callable[[], tuple[TensorRunner, TensorRunner]], inputs: Inputs) -> _Outcome:
    """Run what is wanted and what is judged, in this order."""
    outputs: list[list[Tensor]] = []
    at = None
    try:
        for form in forms():
            at = form
            outputs.append(form.outputs(inputs))
    except Exception as error:
        if lacks_memory(error):
            raise
        # Whatever an operator or a user's forward raises means that this form does not run.
        where = f" at {place(at.at)}" if isinstance(at, Streamed) else ""
        return _Outcome(inputs, [], [], f"{names[len(outputs)]} raises{where}: {said(error)}")
    return _Outcome(inputs, outputs[0], outputs[1])


def _check(
    name: str, outcome: _Outcome, dtype: torch.dtype, signal: float | None = None, slack: float = 1.0
) -> Check:
    problem = outcome.problem or _incomparable(outcome.wanted, outcome.got)
    if problem:
        return _failed(name, problem)
    scales = [magnitude(t) for t in outcome.wanted]
    floor = _SMALL_OUTPUT * max(scales)
    allowed = [slack * _TOLERANCE[dtype] * max(scale, floor) for scale in scales]
    differences = [largest_gap(a, b) for a, b in zip(outcome.wanted, outcome.got, strict=True)]
    passed = all(d <= a for d, a in zip(differences, allowed, strict=True))
    worst = max(range(len(scales)), key=lambda i: _excess(differences[i], allowed[i]))
    return Check(name, differences[worst], allowed[worst], passed, _remark(signal))


def _failed(name: str, why: str) -> Check:
    return Check(name, nan, 0.0, passed=False, detail=why)


def _remark(signal: float | None) -> str:
    """How much the outputs say about the model."""
    if signal is None:
        return ""
    if not signal >= _WEAK_SIGNAL:
        return f"weak proof: outputs differ by only {signal:.0e} between inputs"
    return f"outputs differ by {signal:.0e} between inputs"


def _incomparable(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> str:
    if not wanted or len(wanted) != len(got):
        return f"{len(got)} outputs instead of {len(wanted)}" if wanted else "the model gives no tensor"
    for i, (a, b) in enumerate(zip(wanted, got, strict=True)):
        if a.shape != b.shape:
            return f"output {i} has shape {list(b.shape)} instead of {list(a.shape)}"
    return ""


def _signal(first: list[Tensor], second: list[Tensor]) -> float | None:
    """By which part of their largest value outputs change from one set of inputs to another."""
    changes = [0.0]
    for a, b in zip(first, second, strict=False):
        samples = min(len(a), len(b)) if a.ndim and b.ndim else None
        a, b = (a, b) if samples is None else (a[:samples], b[:samples])
        if a.shape == b.shape and a.numel() and magnitude(a):
            change = largest_gap(a, b) / magnitude(a)
            changes.append(change if isfinite(change) else 0.0)
    return max(changes) if first and second else None


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _excess(gap: float, allowed: float) -> float:
    """How far beyond what is allowed."""
    return gap / allowed if allowed else gap
