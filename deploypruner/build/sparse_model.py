"""A sparse model from a dense int8 one: what is faster sparse, layer by layer, and the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from deploypruner.build.sparse_race import DENSE, Race, race
from deploypruner.build.state import Feeds
from deploypruner.errors import InputError, KernelError, MeasureError
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.onnx_file import write_onnx
from deploypruner.records import Check, Environment
from deploypruner.runtime import runtimes
from deploypruner.scratch import scratch
from deploypruner.sparse.convert import SparseModel, sparsify
from deploypruner.sparse.gates import Gate
from deploypruner.sparse.layer import Weighted
from deploypruner.sparse.library import active_target, extension_path, no_fast_target, targets
from deploypruner.sparse.partition import LayerDecision
from deploypruner.sparse.verify import verify_operations

MODEL = "model.sparse.onnx"
_CHOSEN, _EVERY = "chosen", "every layer"


@dataclass(frozen=True)
class Made:
    """Result of `make_sparse`.

    Args:
        check: Its operations against the dense model's; None where there is no sparse model.
        document: What was decided and why, for the report.
    """

    check: Check | None
    document: dict[str, Any]


def make_sparse(
    dense: Path,
    sparse: Path,
    *,
    feeds: Sequence[Feeds],
    timed: Feeds | None = None,
    threads: int,
    counts: Sequence[int] = (),
    environments: Sequence[Environment] = (),
    say: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
) -> Made:
    """Write `sparse`, the fastest form of the QDQ file `dense`, and prove its operations.

    Every layer is timed both ways, and the cheapest cut between them proposes a form. That form, every layer sparse
    and the dense file are then timed whole; nothing slower than the dense one is written.

    Args:
        dense: u8 activations, one fixed size.
        sparse: Written only where it is no slower than `dense`.
        feeds: Inputs for the proof, real ones where there are any.
        timed: Inputs that layers are timed with, as many images as the model is to run with; the first of `feeds`
            where None.
        threads: That the model is to run with, and layers are timed with.
        counts: Numbers of threads that whole models are tried with, where that was left open; `threads` where none.
        environments: Variables of the process that whole models are tried with; all that OpenVINO offers where none.
        say: Told about long work.
        clock: Says what kernels and layers take; that of this machine where None.

    Raises:
        InputError: `dense` cannot be read, is not int8, or has open sizes.
    """
    model = onnx.load(dense)
    every = sparsify(model, every=True)
    clock = clock or current_clock()
    if clock.machine.elsewhere:
        return Made(None, _document(every, reason=not_there(clock.machine.name)))
    try:
        library, target = extension_path(), active_target()
    except KernelError as error:
        return Made(None, _document(every, reason=f"{error.message}; {error.hint}"))
    if targets() == ("scalar",):
        return Made(None, _document(every, reason=no_fast_target()))
    if every.model is None:
        return Made(None, _document(every, reason=f"no layer fits the kernels{_for_example(every.refused)}"))
    write_onnx(every.model, sparse)
    layers = [choice.layer for choice in every.choices]
    timed = feeds[0] if timed is None else timed
    rates = clock.kernel_rates(threads, say=say).rates
    try:
        costs = clock.layer_costs(dense, sparse, layers, feeds=timed, threads=threads, rates=rates)
    except InputError as error:  # OpenVINO cannot run every model that is sound; the build goes on without it
        sparse.unlink()
        return Made(None, _document(every, reason=error.message))
    sparse.unlink()
    found, setting = sparsify(model, costs=costs), {"batch": costs.rates.images, "threads": threads}
    say("timing the whole model dense and sparse")
    try:
        with scratch() as folder:
            files = _forms(found, every, folder)
            run = race(
                dense,
                files,
                preferred=DENSE if found.model is None else _CHOSEN,
                feeds=timed,
                threads=counts or (threads,),
                environments=environments or runtimes.get("openvino").environments("int8", clock.machine.target),
                clock=clock,
            )
    except MeasureError as error:
        return Made(None, _document(found, reason=error.message, target=target) | setting)
    setting |= run.to_json()
    if run.kept.form == DENSE:
        return Made(None, _document(_with_none(found), reason=_why_dense(found, run), target=target) | setting)
    if run.kept.form == _EVERY:
        found = _with_every(found, every)
    assert found.model is not None, "what ran has operations of ours"
    write_onnx(found.model, sparse)
    check = verify_operations(dense, sparse, [choice.layer for choice in found.choices if choice.sparse], feeds)
    return Made(check, _document(found, reason="", target=target) | setting | {"library": library.name})


def not_there(name: str) -> str:
    """Why nothing runs in the sparse kernels on another machine."""
    return f"the library with the sparse kernels is not sent to another machine, and {name} is one"


def _forms(found: SparseModel, every: SparseModel, folder: Path) -> dict[str, Path]:
    """Form -> file of what the layers' times proposed and of every layer sparse, unless those two are one."""
    models = {_CHOSEN: found.model, _EVERY: every.model}
    if all(choice.sparse for choice in found.choices):
        del models[_EVERY]
    files = {}
    for number, (form, model) in enumerate(models.items()):
        if model is not None:
            files[form] = folder / f"{number}.onnx"
            write_onnx(model, files[form])
    return files


def _why_dense(found: SparseModel, run: Race) -> str:
    if found.model is None:
        return "no layer is faster sparse"
    best = max((entrant for entrant in run.entrants if entrant.form != DENSE), key=lambda entrant: entrant.ratio)
    what = "every layer" if best.form == _EVERY else f"{found.chosen} of its layers"
    return f"the whole model with {what} in sparse kernels runs {best.ratio:.2f}x as fast as the dense one"


def _with_none(found: SparseModel) -> SparseModel:
    """All layers dense."""
    reason = "faster sparse, but the whole is faster dense"
    choices = tuple(replace(c, sparse=False, reason=reason) if c.sparse else c for c in found.choices)
    return replace(found, model=None, choices=choices)


def _with_every(found: SparseModel, every: SparseModel) -> SparseModel:
    """All layers sparse, with what was predicted about each."""
    reason = "the whole is faster with every layer sparse"
    choices = tuple(c if c.sparse else replace(c, sparse=True, reason=reason) for c in found.choices)
    return replace(found, model=every.model, choices=choices)


def _for_example(refused: Mapping[str, str]) -> str:
    """The reason that most layers were refused for, and one of them."""
    if not refused:
        return ""
    reasons = Counter(refused.values())
    most = max(reasons, key=lambda reason: reasons[reason])
    name = next(name for name, reason in refused.items() if reason == most)
    return f"; '{name}': {most}"


def _document(found: SparseModel, *, reason: str, target: str = "") -> dict[str, Any]:
    """JSON-able: every layer with what was predicted both ways and what was chosen."""
    measured = bool(target)
    return {
        "chosen": found.chosen if not reason else 0,
        "reason": reason,
        "target": target,
        "costs": found.costs.source if measured else "",
        "layers": [
            _layer(choice, measured=measured) for choice in found.choices if isinstance(choice.layer, Weighted)
        ],
        "gates": [_gate(choice, measured=measured) for choice in found.choices if isinstance(choice.layer, Gate)],
        "refused": found.refused,
    }


def _layer(choice: LayerDecision, *, measured: bool) -> dict[str, Any]:
    layer = choice.layer
    assert isinstance(layer, Weighted), "gates have no weights"
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel": list(layer.weights.shape[2:]),
        "channels": [layer.x.channels, len(layer.weights)],
        "pixels": layer.pixels,
        "density": layer.density,
        "quads": layer.filled,
        **_times(choice, measured=measured),
    }


def _gate(choice: LayerDecision, *, measured: bool) -> dict[str, Any]:
    gate = choice.layer
    sizes = {"channels": gate.x.channels, "pixels": gate.x.pixels}
    return {"name": gate.name, "kind": gate.kind, **sizes, **_times(choice, measured=measured)}


def _times(choice: LayerDecision, *, measured: bool) -> dict[str, Any]:
    return {
        "sparse_us": choice.sparse_ns / 1e3 if measured else None,
        "dense_us": choice.dense_ns / 1e3 if measured else None,
        "choice": "sparse" if choice.sparse and measured else "dense",
        "reason": choice.reason if measured else "",
    }
