"""The same network quantized by several tools: what the runtimes make of each file, and what it takes.

    python -m benchmarks.int8_fusion run              # after `int8_accuracy run` with every method; a quiet machine
    python -m benchmarks.int8_fusion table

Of every file that `benchmarks.int8_accuracy` kept: layers with weights, and how many of them the runtime executes on
integers; all operations that it executes, and those of them that do nothing but convert; milliseconds on one core,
all files of a network in one interleaved run, batch 1, with the ratio over our file of that runtime. "ours" has its
pairs where OpenVINO wants them, "ours-onnxruntime" where ONNX Runtime does. A runtime that cannot open a file says
why.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.engines import ratio
from benchmarks.int8_forms import FOLDER, NETS, side_of
from benchmarks.kept import changing, read
from benchmarks.side_by_side import ms_of, time_paths
from deploypruner.errors import InputError
from deploypruner.measure import environment
from deploypruner.runtime import NodeTime, Profiler, runtimes

RESULTS = Path(__file__).parent / "results" / "int8_fusion.zen4.json"
RUNTIMES = ("openvino", "onnxruntime")
OURS = {"openvino": "ours", "onnxruntime": "ours-onnxruntime"}
TOOLS = ("float", *OURS.values(), "qat", "onnxruntime", "nncf", "quark")
_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Conv", "Gemm", "FusedConv", "FusedMatMul")
_CONVERSIONS = ("Reorder", "Convert", "FakeQuantize", "QuantizeLinear", "DequantizeLinear")
_INTEGERS = ("u8", "i8", "uint8", "int8")
_COUNTED = 5


def paths_of(net: str) -> dict[str, Path]:
    """Tool -> its file of the dense network; of those that were made."""
    stem = f"{net}-dense"
    found = {tool: FOLDER / f"{stem}-{tool}{'.xml' if tool == 'nncf' else '.onnx'}" for tool in TOOLS}
    found["float"] = FOLDER / f"{stem}.onnx"
    return {tool: path for tool, path in found.items() if path.exists()}


def fused(nodes: Sequence[NodeTime]) -> dict[str, int]:
    """Counts of what was executed."""
    heads = [(node.kind.split("+")[0], node.precisions.partition(">")[0].split(",")) for node in nodes]
    layers = [sent for kind, sent in heads if kind.removeprefix("QLinear").removeprefix("Q") in _LAYERS]
    return {
        "layers": len(layers),
        "on integers": sum(sent[0] in _INTEGERS for sent in layers),
        "operations": len(nodes),
        "conversions": sum(kind.startswith(_CONVERSIONS) for kind, _ in heads),
    }


def counts(path: Path, runtime: str, x: Any) -> dict[str, Any]:
    """Of one file in one runtime, or why there are none."""
    profiler = runtimes.get(runtime)()
    assert isinstance(profiler, Profiler), f"{runtime} counts no operations"
    if path.suffix not in profiler.suffixes:
        return {"why": f"no {path.suffix} file"}
    try:
        return fused(profiler.profile(path, [x], threads=1, calls=_COUNTED))
    except InputError as error:
        return {"why": error.message.splitlines()[0].replace(str(path), path.name)}


def times(files: dict[str, Path], runtime: str, *, seconds: float) -> dict[str, Any]:
    """Tool -> milliseconds, and the ratio of our file of the runtime over it (above 1: ours is faster)."""
    samples = time_paths(files, runtime, logs=FOLDER / "logs", seconds=seconds)
    ours = samples[OURS[runtime]]
    return {tool: {"ms": ms_of(taken), "ours": ratio(ours, taken)} for tool, taken in samples.items()}


@click.group()
def main() -> None:
    """Run, table."""


@main.command()
@click.option("--net", "nets", type=click.Choice(NETS), multiple=True, default=NETS)
@click.option("--seconds", default=15.0, show_default=True, help="of timing, for each network and runtime")
def run(nets: Sequence[str], seconds: float) -> None:
    """Count and time the files that are there; a row that is there is made anew."""
    for net in nets:
        files, side = paths_of(net), side_of(net)
        for tool in OURS.values():
            if tool not in files:
                made = f"python -m benchmarks.int8_accuracy run --net {net} --method {tool}"
                raise click.ClickException(f"no file '{tool}' of {net}: {made}")
        x = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
        row: dict[str, Any] = {"environment": environment()}
        for runtime in RUNTIMES:
            found = {tool: counts(path, runtime, x) for tool, path in files.items()}
            opened = {tool: path for tool, path in files.items() if "why" not in found[tool]}
            for tool, taken in times(opened, runtime, seconds=seconds).items():
                found[tool].update(taken)
            row[runtime] = found
        with changing(RESULTS) as rows:
            rows[net] = row
        click.echo(markdown({net: row}), err=True)


@main.command()
def table() -> None:
    """What is there, as markdown."""
    click.echo(markdown(read(RESULTS)))


def markdown(rows: dict[str, Any]) -> str:
    """Files down, what each runtime makes of it across."""
    lines = [
        "| network | file | runtime | layers on integers | operations, conversions | ms | ours over it |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for net, row in rows.items():
        for runtime in RUNTIMES:
            for tool, found in row[runtime].items():
                lines.append(f"| {net} | {tool} | {runtime} | {_cells(found)} |")
    return "\n".join(lines)


def _cells(found: dict[str, Any]) -> str:
    if "why" in found:
        return f"{found['why']} | | |"
    low, high = found["ours"]["interval"]
    return (
        f"{found['on integers']} of {found['layers']} | {found['operations']}, {found['conversions']} | "
        f"{found['ms']:.3f} | {found['ours']['ratio']:.2f}x [{low:.2f}, {high:.2f}]"
    )


if __name__ == "__main__":
    main()
