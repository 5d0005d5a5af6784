"""Every layer of a build: channels, multiply-adds, parameters, and its time in the recommended runtime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploypruner.build.feeds import timing_feeds
from deploypruner.build.state import Build
from deploypruner.errors import DeployPrunerError
from deploypruner.graph.execute.module import get_state
from deploypruner.measure.profiling import can_profile
from deploypruner.quantize.by_weight import layer_weights
from deploypruner.records import Row, Setting
from deploypruner.report import LayerWidth
from deploypruner.report.roofline import bounds

_SECONDS = 0.1
_PAIRS = {"fp32": ("dense.fp32.onnx", "model.fp32.onnx"), "int8": ("dense.int8.onnx", "model.int8.onnx")}
_FLOATS = ("dense.fp32.onnx", "model.fp32.onnx")


def measured_layers(build: Build, rows: Sequence[Row]) -> tuple[dict[str, Any], str]:
    """Times of layers, dense and pruned, where the pruned model is fastest.

    Args:
        build: With its files written.
        rows: Measured.

    Returns:
        Weight name -> {"ms": [dense, pruned], "precision": as executed}, with what the times are of under "" as
        {"runtime", "precision"}; empty where nothing could be measured. And why it could not, "" where it could.
    """
    known = [row for row in rows if row.pattern != "dense" and can_profile(row.runtime) and row.precision in _PAIRS]
    if not known:
        return {}, ""
    best = min(known, key=lambda row: row.median_ms)
    setting = Setting(best.runtime, best.precision, best.threads, environment=best.environment)
    feeds = timing_feeds(build)
    sides = []
    try:
        for name, reference in zip(_PAIRS[best.precision], _FLOATS, strict=True):
            own = f"{name.removesuffix('.onnx')}.{best.runtime}.onnx"
            file, fp32 = build.folder.path(own if build.folder.has(own) else name), build.folder.path(reference)
            (runs,) = build.clock.layer_times([file], fp32, setting, feeds=feeds, seconds=_SECONDS)
            weights = layer_weights(fp32)
            sides.append({weights[layer]: run for layer, run in runs.items() if layer in weights})
    except DeployPrunerError as error:
        return {}, f"layers are not timed: {error.message}"
    dense, pruned = sides
    found: dict[str, Any] = {
        weight: {
            "ms": [None if run is None else run.ms for run in (dense.get(weight), pruned.get(weight))],
            "precision": "" if weight not in pruned else "int8" if pruned[weight].int8 else "fp32",
        }
        for weight in (*dense, *(weight for weight in pruned if weight not in dense))
    }
    return (found | {"": {"runtime": best.runtime, "precision": best.precision}}) if found else {}, ""


def layer_widths(build: Build) -> tuple[LayerWidth, ...]:
    """Every convolution and linear layer before and after; nothing is left of one whose branch is gone."""
    graph, module = build.traced, build.compiled
    gone = {name: branch for branch in build.planned.dropped for name in graph.branch(branch).parameters}
    all_macs = graph.costs.layer_macs()
    patterns = {} if build.zeros is None else {layer.name: layer.pattern for layer in build.zeros.layers}
    fp32 = build.folder.path(_FLOATS[1])
    nodes = {weight: node for node, weight in layer_weights(fp32).items()} if build.folder.has(_FLOATS[1]) else {}
    found = []
    for affine in (a for a in graph.labelling.affines.values() if a.role == "producer"):
        dense, branch = get_state(graph.module, affine.weight), gone.get(affine.weight, "")
        pruned = None if branch else get_state(module, affine.weight)
        sizes = dense.numel(), 0 if pruned is None else pruned.numel()
        macs = all_macs.get(affine.weight, 0)
        times, name = build.layer_ms.get(affine.weight), affine.weight.removesuffix(".weight")
        found.append(
            LayerWidth(
                name,
                "linear" if dense.ndim == 2 else "conv",
                dense.shape[affine.axis],
                0 if pruned is None else pruned.shape[affine.axis],
                branch,
                macs=(macs, macs * sizes[1] // max(1, sizes[0])),
                params=sizes,
                ms=None if times is None else (times["ms"][0], times["ms"][1]),
                precision="" if times is None else times["precision"],
                pattern=patterns.get(name, ""),
                node=nodes.get(affine.weight, ""),
            )
        )
    return bounds(found)
