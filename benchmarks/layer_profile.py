"""Where the time of a sparse network goes, layer by layer, and what bounds each.

    python -m benchmarks.layer_profile                 # ResNet-50 and MobileNetV2, 4x4 and 1x4 at 90 %
    python -m benchmarks.layer_profile --net resnet50 --pattern 1x4 --sparsity 0.8
    python -m benchmarks.layer_profile --markdown      # only print what is there
    python -m benchmarks.layer_profile --out here.json # another CPU's

The file with every layer in our kernels runs in OpenVINO with its counters, one thread, batch 1: `us`, the median
over rounds. Then each convolution alone, again and again, its tensors in the caches: `warm`; and once more with a
single weight for each row, `empty`: rounding, storing, and the copy of the input where there is one. What the layer
takes at the speed of VPDPBUSD (`benchmarks.roofline`, measured in the same run) is `peak`; its share of `us` is the
last column. What bounds a layer is the largest of three: multiplying (warm - empty), rounding (empty), fetching
(us - warm).
"""

from __future__ import annotations

import ctypes
import json
import time
from collections import defaultdict
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from benchmarks.roofline import measure_peak
from benchmarks.sparse_models import NETS, Variant, prepare
from deploypruner.measure import environment
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.sparse.arrays import aligned, c4_shape, pointer
from deploypruner.sparse.bindings import ConvShape, create
from deploypruner.sparse.library import active_target, load
from deploypruner.sparse.packed import pack

RESULTS = Path(__file__).parent / "results" / "layer_profile.zen4.json"
_ROUNDS, _CALLS = 25, 4
_ALONE_S = 0.02
_PARTS = ("multiplying", "rounding", "fetching")

Results = dict[str, Any]


def measure(variant: Variant) -> Results:
    """Every operation of a network, in the order of the file."""
    prepare(variant, ("every",))
    path = variant.file("every")
    nodes = _node_us(path, variant)
    model = onnx.load(path)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    rate = measure_peak()["vpdpbusd"]
    rows = []
    for node in model.graph.node:
        # What gives a result of the model OpenVINO calls after the result.
        known = next((name for name in (node.name, *node.output) if name in nodes), None)
        if known is None:
            continue
        row: Results = {"name": node.name, "op": node.op_type, "us": nodes.pop(known)}
        if node.op_type == "SparseConv":
            row |= _alone(node, stored, rate)
        rows.append(row)
    whole = sum(row["us"] for row in rows) + sum(nodes.values())
    return {"layers": rows, "outside": nodes, "whole_us": whole, "vpdpbusd": rate, "target": active_target()}


def _node_us(path: Path, variant: Variant) -> dict[str, float]:
    x = np.random.default_rng(0).normal(size=variant.shape).astype(np.float32)
    session = OpenVino().counted(path, [x], threads=1)
    taken: dict[str, list[float]] = defaultdict(list)
    for _ in range(_ROUNDS):
        for node in session.node_times([x], calls=_CALLS):
            taken[node.name].append(node.ns / 1e3)
    return {name: median(us) for name, us in taken.items() if median(us) > 0}


def _alone(node: onnx.NodeProto, stored: dict[str, NDArray[Any]], rate: float) -> Results:
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    mask, values, scale, bias = (stored[name] for name in node.input[1:5])
    shape = _shape(said, has_residual=len(node.input) == 6)
    weights = {"scale": scale, "bias": bias}
    few = _one_a_row(shape)
    warm, steps = _warm_us(shape, mask, values, weights)
    empty, _ = _warm_us(shape, few.mask, few.values, weights)
    high, wide = shape.size_out
    return {
        "channels": [shape.channels_in, shape.channels_out],
        "size_out": [high, wide],
        "kernel": shape.kernel[0],
        "stride": shape.stride[0],
        "depthwise": shape.groups > 1 and shape.groups == shape.channels_in,
        "residual": shape.residual_zero_point is not None,
        "swish": bool(shape.swish_step or shape.hard_swish_slope),
        "steps": steps,
        "warm_us": warm,
        "empty_us": empty,
        "peak_us": steps * -(-high * wide // 16) / rate * 1e6,
    }


def _shape(said: dict[str, Any], *, has_residual: bool) -> ConvShape:
    taken: dict[str, Any] = {name: said[name] for name in _NUMBERS if name in said}
    taken |= {name: tuple(said[given]) for name, given in _LISTS.items() if given in said}
    if has_residual:
        taken["residual_zero_point"] = said.get("residual_zero_point", 0)
    return ConvShape(**taken, groups=said.get("group", 1))


_LISTS = {"kernel": "kernel_shape", "stride": "strides", "dilation": "dilations", "pads": "pads"}
_NUMBERS = """channels_in channels_out height width input_zero_point output_zero_point low high residual_scale
    sum_low sum_high hard_swish_slope swish_step""".split()


def _one_a_row(shape: ConvShape) -> Any:
    """One weight for each output channel, four neighbours at the same tap, all taps in use."""
    taps = shape.kernel[0] * shape.kernel[1]
    weights = np.zeros((shape.channels_out, shape.channels_in // shape.groups, taps), np.int8)
    rows = np.arange(shape.channels_out)
    weights[rows, 0, rows // 4 % taps] = 1
    return pack(weights)


def _warm_us(shape: ConvShape, mask: Any, values: Any, weights: dict[str, Any]) -> tuple[float, int]:
    """Microseconds of one call, and steps for sixteen pixels."""
    library = load()
    handle = create(shape, mask, values, **weights)
    scratch = aligned((int(library.dp_conv_scratch_bytes(handle, 1)),))
    x = aligned(c4_shape(1, shape.channels_in, shape.height * shape.width))
    x[:] = np.random.default_rng(0).integers(0, 128, x.shape)
    high, wide = shape.size_out
    y, added = (aligned(c4_shape(1, shape.channels_out, high * wide)) for _ in range(2))
    residual = None if shape.residual_zero_point is None else pointer(added)
    given = (handle, 1, pointer(x), residual, pointer(y), pointer(scratch), 1, None, None)
    taken: list[float] = []
    end = time.perf_counter() + _ALONE_S
    while time.perf_counter() < end or len(taken) < 5:
        begin = time.perf_counter()
        library.dp_conv_run(*given)
        taken.append((time.perf_counter() - begin) * 1e6)
    steps = int(library.dp_conv_steps(handle))
    library.dp_conv_destroy(ctypes.c_void_p(handle.value))
    return median(taken), steps


def table(run: Results) -> str:
    """Markdown: layers of one shape in one line, and what is outside of the convolutions below."""
    groups: dict[str, list[Results]] = defaultdict(list)
    for row in run["layers"]:
        groups[_label(row)].append(row)
    lines = [
        "| layers | n | us | warm | empty | peak | bound by | share of peak |",
        "|---|--:|--:|--:|--:|--:|---|--:|",
    ]
    for label, rows in groups.items():
        us = sum(row["us"] for row in rows)
        if "warm_us" not in rows[0]:
            lines.append(f"| {label} | {len(rows)} | {us:.0f} | | | | | |")
            continue
        warm, empty, peak = (sum(row[key] for row in rows) for key in ("warm_us", "empty_us", "peak_us"))
        parts = (warm - empty, empty, us - warm)
        bound = _PARTS[int(np.argmax(parts))]
        numbers = " | ".join(f"{each:.0f}" for each in (us, warm, empty, peak))
        lines.append(f"| {label} | {len(rows)} | {numbers} | {bound} | {peak / us:.0%} |")
    ours = [row for row in run["layers"] if row["op"] in _OURS]
    convolutions = [row for row in ours if "warm_us" in row]
    us, warm, empty, peak = (
        sum(row[key] for row in convolutions) for key in ("us", "warm_us", "empty_us", "peak_us")
    )
    numbers = " | ".join(f"{each:.0f}" for each in (us, warm, empty, peak))
    lines.append(f"| all convolutions | {len(convolutions)} | {numbers} | | {peak / us:.0%} |")
    outside = run["whole_us"] - sum(row["us"] for row in ours)
    lines.append(
        f"| outside of our operations | | {outside:.0f} | | | | | {outside / run['whole_us']:.1%} of the whole |"
    )
    return "\n".join(lines)


_OURS = ("SparseConv", "SparseLinear", "QuantizeC4", "PixelsC4", "PoolC4", "ScaleC4", "MaxPoolC4")


def _label(row: Results) -> str:
    if "warm_us" not in row:
        return str(row["op"])
    kind = "depthwise" if row["depthwise"] else "{} to {}".format(*row["channels"])
    side, stride = row["kernel"], "" if row["stride"] == 1 else f", stride {row['stride']}"
    more = ("", " + residual")[row["residual"]] + ("", ", swish")[row["swish"]]
    return f"{kind}, {side} x {side}{stride}{more}, at {row['size_out'][0]} x {row['size_out'][1]}"


@click.command()
@click.option(
    "--net", "nets", multiple=True, type=click.Choice(NETS), default=("resnet50", "mobilenet_v2"), show_default=True
)
@click.option("--pattern", "patterns", multiple=True, default=("4x4", "1x4"), show_default=True)
@click.option("--sparsity", "sparsities", multiple=True, type=float, default=(0.9,), show_default=True)
@click.option("--out", default=RESULTS, show_default=True, type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True, help="Only print the tables of what is there.")
def main(
    nets: tuple[str, ...], patterns: tuple[str, ...], sparsities: tuple[float, ...], out: Path, markdown: bool
) -> None:
    """Profile networks anew and print the tables."""
    found: Results = json.loads(out.read_text()) if out.exists() else {"runs": {}}
    for net, pattern, sparsity in product(nets, patterns, sparsities):
        variant = Variant(net, pattern, sparsity)
        if not markdown:
            found["environment"] = environment()
            found["runs"][f"{net} {variant.label}"] = measure(variant)
            part = out.with_suffix(".tmp")
            part.write_text(json.dumps(found, indent=1) + "\n")
            part.replace(out)
    for name, run in found["runs"].items():
        click.echo(f"{name}, {run['whole_us'] / 1e3:.2f} ms\n\n{table(run)}\n")


if __name__ == "__main__":
    main()
