"""Predicted against measured latency of whole networks at widths that were not probed.

    python -m benchmarks.latency_model run torchvision:resnet50 --precision int8
    python -m benchmarks.latency_model run --all          # what is not in the results yet
    python -m benchmarks.latency_model table --markdown

Every row is one network at uniform widths of 0.8, 0.6 and 0.4, and one with random widths, exported the way a build
exports it and timed by `measure.time_artifacts` beside the dense network. Medians on a shared virtual machine
move by up to two within minutes, so what is compared is the dense network's predicted time / the candidate's with the
paired ratio of the two measurements; "ms" are that ratio times the dense prediction. Recalibrated on the width 0.6.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

import deploypruner as dp
from deploypruner.channels.constraints import find_limits
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.latency import build_latency_model, write_candidate
from deploypruner.latency.plans import candidate_widths, keep_first
from deploypruner.measure import paired_ratio, time_artifacts
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Artifact, Precision, Setting
from deploypruner.sources.model import load_model

MODELS = (
    *("torchvision:resnet18", "torchvision:resnet50", "torchvision:mobilenet_v2", "torchvision:mobilenet_v3_large"),
    *("torchvision:efficientnet_b0", "torchvision:regnet_y_400mf", "timm:vit_tiny_patch16_224"),
)
ON_ONNXRUNTIME = ("torchvision:resnet18", "torchvision:mobilenet_v2")
WORK = Path(__file__).parent / "work" / "latency_model"
RESULTS = Path(__file__).parent / "results" / "latency_model.json"
WIDTHS = (0.8, 0.6, 0.4, None)
CALIBRATED_ON = 1
STEP = 8


def plans(graph: Graph) -> list[Keep]:
    """One plan for each of `WIDTHS`; what is left whole by default stays whole, None is random widths."""
    rng = np.random.default_rng(99)
    widths = candidate_widths(graph, STEP)
    limits = find_limits(graph, Constraints(), step=STEP, statistics=False)
    found = []
    for share in WIDTHS:
        chosen = {}
        for group, allowed in widths.items():
            pick = int(rng.choice(allowed))
            if share is not None:
                goal = share * allowed[0]
                pick = allowed[int(np.abs(np.asarray(allowed) - goal).argmin())]
            chosen[group] = allowed[0] if limits[group].whole else pick
        found.append(keep_first(graph, chosen))
    return found


def run_one(name: str, setting: Setting, *, seconds: float) -> dict[str, Any]:
    """Build the table in a cache of its own, and measure the four networks of one model in one setting.

    A run that is cut off after the table was built goes on from there.
    """
    source = load_model(f"{name}?pretrained=0")
    graph = dp.trace(source.module, source.example_inputs)
    own = WORK / f"{name} {setting}".replace("/", "_").replace(" ", "_").replace(":", "_")
    begin = time.monotonic()
    model = build_latency_model(graph, setting, cache=own, step=STEP)
    if not (own / "seconds").exists():
        (own / "seconds").write_text(f"{time.monotonic() - begin:.1f}")
    built = float((own / "seconds").read_text())
    with tempfile.TemporaryDirectory() as folder:
        chosen = plans(graph)
        jobs = []
        for i, keep in enumerate([{}, *chosen]):
            path = Path(folder) / f"{i}.onnx"
            write_candidate(graph, keep, setting.precision, path)
            pattern = "channel" if i else "dense"
            jobs.append((Artifact(f"{i}", path, "onnx", setting.precision, pattern), setting.runtime))
        timings = time_artifacts(jobs, threads=setting.threads, budget_s=seconds).timings
    dense_ms = model.ms({})
    rows: list[dict[str, Any]] = []
    for share, keep, timing in zip(WIDTHS, chosen, timings[1:], strict=True):
        ratio, interval = paired_ratio(timing.samples_ns, timings[0].samples_ns)
        rows.append(
            {
                "width": share,
                "predicted_ms": model.ms(keep),
                "measured_ms": dense_ms / ratio,
                "median_ms": float(np.median(timing.samples_ns)) / 1e6,
                "ratio": ratio,
                "ratio_ci": interval,
                "macs": graph.cost(keep).macs / graph.cost().macs,
            }
        )
    for row in rows:
        row["error"] = row["predicted_ms"] / row["measured_ms"] - 1
        row["macs_error"] = row["macs"] * dense_ms / row["measured_ms"] - 1
    reference = rows[CALIBRATED_ON]
    better = model.calibrated(chosen[CALIBRATED_ON], reference["measured_ms"])
    for i, (row, keep) in enumerate(zip(rows, chosen, strict=True)):
        row["error_after"] = None if i == CALIBRATED_ON else better.ms(keep) / row["measured_ms"] - 1
    return {
        "model": name,
        "runtime": setting.runtime,
        "precision": setting.precision,
        "dense_predicted_ms": dense_ms,
        "dense_median_ms": float(np.median(timings[0].samples_ns)) / 1e6,
        "table_s": built,
        "facts": model.facts,
        "rows": rows,
    }


def read() -> dict[str, Any]:
    """Results so far, by "model runtime precision"."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


@click.group()
def main() -> None:
    """Predicted against measured latency."""


@main.command()
@click.argument("name", required=False)
@click.option("--runtime", default="openvino")
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32")
@click.option("--all", "everything", is_flag=True, help="Everything that is not in the results yet.")
@click.option("--seconds", default=12.0, help="Of measuring for each model.")
def run(name: str | None, runtime: str, precision: Precision, everything: bool, seconds: float) -> None:
    """Measure and add to the results."""
    torch.set_num_threads(1)
    jobs: list[tuple[str, str, Precision]] = [(name, runtime, precision)] if name else []
    if everything:
        jobs += [(model, "openvino", kind) for kind in ("int8", "fp32") for model in MODELS]
        jobs += [(model, "onnxruntime", "fp32") for model in ON_ONNXRUNTIME]
    for model, where, kind in jobs:
        key = f"{model} {where} {kind}"
        if everything and key in read():
            continue
        found = run_one(model, Setting(where, kind, 1), seconds=seconds)
        RESULTS.write_text(json.dumps({**read(), key: found}, indent=1) + "\n")
        click.echo(
            f"{key}: table {found['table_s']:.0f} s, " + ", ".join(f"{r['error']:+.1%}" for r in found["rows"])
        )


@main.command()
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
def table(markdown: bool) -> None:
    """Print the results."""
    head = ["network", "setting", "width", "predicted ms", "measured ms", "error", "after one round", "by MACs"]
    lines, errors, after, macs = [], [], [], []
    for found in read().values():
        for row in found["rows"]:
            errors.append(abs(row["error"]))
            macs.append(abs(row["macs_error"]))
            calibrated = "" if row["error_after"] is None else f"{row['error_after']:+.1%}"
            if row["error_after"] is not None:
                after.append(abs(row["error_after"]))
            lines.append(
                [
                    found["model"].partition(":")[2],
                    f"{found['runtime']} {found['precision']}",
                    "random" if row["width"] is None else f"{row['width']:g}",
                    f"{row['predicted_ms']:.2f}",
                    f"{row['measured_ms']:.2f}",
                    f"{row['error']:+.1%}",
                    calibrated,
                    f"{row['macs_error']:+.1%}",
                ]
            )
    for cells in [head, ["---"] * len(head), *lines] if markdown else [head, *lines]:
        click.echo(f"| {' | '.join(cells)} |" if markdown else "  ".join(f"{cell:>16}" for cell in cells))
    if errors:
        slowest = max(found["table_s"] for found in read().values())
        click.echo(
            f"\nmedian error {median(errors):.1%}, after one measured round {median(after):.1%}, "
            f"by MACs {median(macs):.1%}; slowest table {slowest:.0f} s"
        )


if __name__ == "__main__":
    main()
