"""A sparse model from a dense int8 one: what is faster sparse, layer by layer, and the proof."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from deploypruner.build.state import Feeds
from deploypruner.errors import InputError, KernelError
from deploypruner.latency.clock import Clock, current_clock
from deploypruner.onnx_file import write_onnx
from deploypruner.records import Check
from deploypruner.sparse.convert import SparseModel, sparsify
from deploypruner.sparse.gates import Gate
from deploypruner.sparse.layer import Layer
from deploypruner.sparse.library import active_target, extension_path, targets
from deploypruner.sparse.partition import LayerDecision
from deploypruner.sparse.verify import verify_operations

MODEL = "model.sparse.onnx"


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
    say: Callable[[str], None] = lambda line: None,
    clock: Clock | None = None,
) -> Made:
    """Write `sparse`, the fastest form of the QDQ file `dense` by measured layers, and prove its operations.

    Args:
        dense: u8 activations, one fixed size.
        sparse: Written only if some layer is faster sparse.
        feeds: Inputs for the proof, real ones where there are any.
        timed: Inputs that layers are timed with, as many images as the model is to run with; the first of `feeds`
            where None.
        threads: That the model is to run with.
        say: Told about long work.
        clock: Says what kernels and layers take; that of this machine where None.

    Raises:
        InputError: `dense` cannot be read, is not int8, or has open sizes.
    """
    model = onnx.load(dense)
    every = sparsify(model, every=True)
    try:
        library, target = extension_path(), active_target()
    except KernelError as error:
        return Made(None, _document(every, reason=f"{error.message}; {error.hint}"))
    if targets() == ("scalar",):
        return Made(None, _document(every, reason="this CPU has neither AVX2 nor AVX-512 VNNI for the kernels"))
    if every.model is None:
        return Made(None, _document(every, reason=f"no layer fits the kernels{_for_example(every.refused)}"))
    write_onnx(every.model, sparse)
    layers = [choice.layer for choice in every.choices]
    timed = feeds[0] if timed is None else timed
    clock = clock or current_clock()
    rates = clock.kernel_rates(threads, say=say).rates
    try:
        costs = clock.layer_costs(dense, sparse, layers, feeds=timed, threads=threads, rates=rates)
    except InputError as error:  # OpenVINO cannot run every model that is sound; the build goes on without it
        sparse.unlink()
        return Made(None, _document(every, reason=error.message))
    found, setting = sparsify(model, costs=costs), {"batch": costs.rates.images, "threads": threads}
    if found.model is None:
        sparse.unlink()
        return Made(None, _document(found, reason="no layer is faster sparse", target=target) | setting)
    write_onnx(found.model, sparse)
    check = verify_operations(dense, sparse, [choice.layer for choice in found.choices if choice.sparse], feeds)
    return Made(check, _document(found, reason="", target=target) | setting | {"library": library.name})


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
        "layers": [_layer(choice, measured=measured) for choice in found.choices if isinstance(choice.layer, Layer)],
        "gates": [_gate(choice, measured=measured) for choice in found.choices if isinstance(choice.layer, Gate)],
        "refused": found.refused,
    }


def _layer(choice: LayerDecision, *, measured: bool) -> dict[str, Any]:
    layer = choice.layer
    assert isinstance(layer, Layer), "gates have no weights"
    return {
        "name": layer.name,
        "kind": layer.kind,
        "kernel": list(layer.geometry.kernel),
        "channels": [layer.x.channels, layer.y.channels],
        "pixels": layer.y.pixels,
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
