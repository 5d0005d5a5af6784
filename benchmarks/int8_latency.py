"""Int8 against float in both runtimes: every layer int8, and the mix that the package chooses.

    python -m benchmarks.int8_latency run --net mobilenetv3_large_100
    python -m benchmarks.int8_latency table

Random weights at 224 x 224 and ranges from noise: what is compared is time. One interleaved run per network and
runtime, float first; "best fp32" is the faster runtime's.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from benchmarks.zoo_models import untrained
from deploypruner.export import exporters
from deploypruner.measure import compare, environment, median_ms, time_artifacts
from deploypruner.quantize.static import calibrate, write_qdq
from deploypruner.records import Artifact
from deploypruner.search.mixes import MixRequest
from deploypruner.search.mixing import mix
from deploypruner.target import detect

NETS = (
    "resnet50",
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "efficientnet_b0",
    "regnety_004",
    "vit_tiny_patch16_224",
)
RESULTS = Path(__file__).parent / "results" / "int8-latency"
_RUNTIMES = ("openvino", "onnxruntime")
_BATCHES = 4


def run(net: str, *, seconds: float) -> dict[str, Any]:
    """Choose the mix of one network, and time it beside float and all-int8."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    noise = [[rng.standard_normal((1, 3, 224, 224), dtype=np.float32)] for _ in range(_BATCHES)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
        module, _ = untrained(f"timm:{net}")
        exporters.get("onnx")().write(module.eval(), (torch.from_numpy(noise[0][0]),), fp32, dynamic_batch=False)
        calibrated = calibrate(fp32, noise, folder=folder)
        saturates = detect().saturates
        write_qdq(calibrated, int8, reduce_range=saturates)
        found = mix(MixRequest(fp32, int8, calibrated, folder, timed=_RUNTIMES, feeds=noise[0], say=print))
        files = {"fp32": fp32, "int8": int8}
        for which, file in (("shared", found.shared), *found.own.items()):
            path = folder / f"{which}.onnx"
            write_qdq(calibrated, path, placement=file.placement, reduce_range=saturates, keep_float=file.keep_float)
            files[which] = path
        jobs = [
            (Artifact(which, path, "onnx", "fp32" if which == "fp32" else "int8"), runtime)
            for runtime in _RUNTIMES
            for which, path in files.items()
            if which in ("fp32", "int8", "shared", runtime)
        ]
        measured = time_artifacts(jobs, budget_s=seconds, feeds=noise[0])
    timings = {(t.runtime, t.artifact.name): t for t in measured.timings}
    best = min((timings[r, "fp32"] for r in _RUNTIMES), key=lambda t: median_ms(t.samples_ns))
    rows = [
        {
            "runtime": runtime,
            "file": which,
            "ms": median_ms(timing.samples_ns),
            "over_own_fp32": _ratio(timing, timings[runtime, "fp32"], measured.floor),
            "over_best_fp32": _ratio(timing, best, measured.floor),
        }
        for (runtime, which), timing in timings.items()
    ]
    return {
        "net": net,
        "rows": rows,
        "float_layers": {which: len(f.keep_float) for which, f in (("shared", found.shared), *found.own.items())},
        "layers": len(calibrated.layers),
        "noise_floor": measured.floor,
        "busy": measured.reason,
        "environment": environment(),
    }


def _ratio(timing: Any, baseline: Any, floor: float) -> list[float]:
    found = compare(timing, baseline, floor=floor)
    return [found.ratio, *found.ratio_ci]


def table() -> str:
    """Markdown, one line per network and runtime."""
    lines = [
        "| network | runtime | fp32, ms | int8 everywhere | chosen mix | float layers | against the best fp32 |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    for path in (RESULTS / f"{net}.json" for net in NETS):
        if not path.is_file():
            continue
        document = json.loads(path.read_text())
        rows = {(row["runtime"], row["file"]): row for row in document["rows"]}
        for runtime in _RUNTIMES:
            own = runtime if (runtime, runtime) in rows else "shared"
            mixed = rows[runtime, own]
            count = document["float_layers"][own]
            lines.append(
                f"| {document['net']} | {runtime} | {rows[runtime, 'fp32']['ms']:.2f} "
                f"| {_times(rows[runtime, 'int8']['over_own_fp32'])} | {_times(mixed['over_own_fp32'])} "
                f"| {count} of {document['layers']}{', own file' if own == runtime else ''} "
                f"| {_times(mixed['over_best_fp32'])} |"
            )
    return "\n".join(lines)


def _times(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f}x [{ratio[1]:.2f}, {ratio[2]:.2f}]"


@click.group()
def main() -> None:
    """Run, table."""


@main.command("run")
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these")
@click.option("--seconds", default=20.0, show_default=True, help="of each measurement")
def run_command(net: Sequence[str], seconds: float) -> None:
    """Measure; each network's result is kept in a file."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in net or NETS:
        path = RESULTS / f"{name}.json"
        path.write_text(json.dumps(run(name, seconds=seconds), indent=1) + "\n")
    click.echo(table())


@main.command("table")
def table_command() -> None:
    """Print what there is."""
    click.echo(table())


if __name__ == "__main__":
    main()
