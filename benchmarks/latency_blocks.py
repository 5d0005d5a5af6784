"""Predicted against measured latency of residual networks that lose blocks, alone and together with widths.

    python -m benchmarks.latency_blocks run resnet20 --precision int8
    python -m benchmarks.latency_blocks run --all           # what is not in the results yet
    python -m benchmarks.latency_blocks table --markdown

Plans are: every second block gone, the other half gone, all gone, and random ones in which each block goes with a
chance of 0.4 and what stays has widths of the wider half. Random weights, which do not matter for time. As in
`latency_model`, the dense network's predicted time / the candidate's is compared with the paired ratio of the two
measurements; "after" is the error after `calibrated` with the first plan and its profile, as in the closed loop.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

import deploypruner as dp
from benchmarks.models import NETS
from deploypruner.channels.constraints import find_limits
from deploypruner.graph import Graph
from deploypruner.graph.dependency import Keep
from deploypruner.latency import build_latency_model, profile, write_candidate
from deploypruner.latency.plans import candidate_widths, keep_first
from deploypruner.measure import paired_ratio, time_artifacts
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Artifact, Precision, Setting
from deploypruner.target import detect

MODELS = ("resnet20", "resnet56")
WORK = Path(__file__).parent / "work" / "latency_blocks"
RESULTS = Path(__file__).parent / "results" / "latency_blocks.json"
GONE = 0.4
RANDOM = 4
STEP = 4


def plans(graph: Graph) -> dict[str, Keep]:
    """Name -> plan."""
    ids = [branch.id for branch in graph.branches]
    gone = np.array([], np.int64)
    found: dict[str, Keep] = {
        "every second": dict.fromkeys(ids[::2], gone),
        "the others": dict.fromkeys(ids[1::2], gone),
        "all": dict.fromkeys(ids, gone),
    }
    rng = np.random.default_rng(7)
    widths = candidate_widths(graph, STEP)
    limits = find_limits(graph, Constraints(), step=STEP, statistics=False)
    for number in range(RANDOM):
        chosen = {
            group: allowed[0] if limits[group].whole else int(rng.choice(allowed[: (len(allowed) + 1) // 2]))
            for group, allowed in widths.items()
        }
        lost = [i for i in ids if rng.uniform() < GONE]
        found[f"random {number + 1}"] = {**keep_first(graph, chosen), **dict.fromkeys(lost, gone)}
    return found


def run_one(name: str, setting: Setting, *, seconds: float) -> dict[str, Any]:
    """Build the model in a cache of its own, and measure every plan beside the dense network."""
    torch.manual_seed(0)
    graph = dp.trace(NETS[name]().eval(), (torch.randn(1, 3, 32, 32),))
    begin = time.monotonic()
    model = build_latency_model(graph, setting, cache=WORK / f"{name}", step=STEP)
    built = time.monotonic() - begin
    chosen = plans(graph)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        jobs, profiles = [], []
        for i, keep in enumerate([{}, *chosen.values()]):
            path = Path(folder) / f"{i}.onnx"
            write_candidate(graph, keep, setting.precision, path)
            pattern = "channel" if i else "dense"
            jobs.append((Artifact(f"{i}", path, "onnx", setting.precision, pattern), setting.runtime))
        timings = time_artifacts(jobs, threads=setting.threads, budget_s=seconds).timings
        profiles = [profile(Path(jobs[1][0].path), setting)]
    rows: list[dict[str, Any]] = []
    dense_ms = model.ms({})
    for (label, keep), timing in zip(chosen.items(), timings[1:], strict=True):
        ratio, interval = paired_ratio(timing.samples_ns, timings[0].samples_ns)
        measured = dense_ms / ratio
        rows.append({"plan": label, "ms": measured, "ratio": ratio, "ratio_ci": interval})
        rows[-1]["error"] = model.ms(keep) / measured - 1
    first = next(iter(chosen.values()))
    better = model.calibrated(first, rows[0]["ms"], profiles[0])
    for row, keep in zip(rows, chosen.values(), strict=True):
        row["after"] = better.ms(keep) / row["ms"] - 1
    return {
        "model": name,
        "setting": str(setting),
        "cpu": detect().processor,
        "load": load,
        "dense_ms": dense_ms,
        "dense_after": better.ms({}) / dense_ms - 1,
        "table_s": built,
        "facts": model.facts,
        "rows": rows,
    }


def read() -> dict[str, Any]:
    """Results so far, by "model setting"."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


@click.group()
def main() -> None:
    """Predicted against measured latency of networks without some of their blocks."""


@main.command()
@click.argument("name", required=False)
@click.option("--precision", type=click.Choice(["fp32", "int8"]), default="fp32")
@click.option("--all", "everything", is_flag=True, help="Everything that is not in the results yet.")
@click.option("--seconds", default=16.0, help="Of measuring for each model.")
def run(name: str | None, precision: Precision, everything: bool, seconds: float) -> None:
    """Measure and add to the results."""
    torch.set_num_threads(1)
    jobs: list[tuple[str, Precision]] = [(name, precision)] if name else []
    if everything:
        jobs += [(model, kind) for model in MODELS for kind in ("fp32", "int8")]
    for model, kind in jobs:
        setting = Setting("openvino", kind, 1)
        key = f"{model} {setting}"
        if everything and key in read():
            continue
        found = run_one(model, setting, seconds=seconds)
        RESULTS.write_text(json.dumps({**read(), key: found}, indent=1) + "\n")
        errors = ", ".join(f"{r['plan']} {r['error']:+.1%} ({r['after']:+.1%})" for r in found["rows"])
        click.echo(f"{key}: table {found['table_s']:.0f} s, load {found['load']:.1f}, {errors}")


@main.command()
@click.option("--markdown", is_flag=True, help="As a Markdown table.")
def table(markdown: bool) -> None:
    """Print the results."""
    lines = [["network", "setting", "gone", "measured ratio", "error", "after one round"]]
    lines += [["---"] * len(lines[0])] if markdown else []
    errors, after = [], []
    for found in read().values():
        for row in found["rows"]:
            errors.append(abs(row["error"]))
            after.append(abs(row["after"]))
            change = [f"{row['ratio']:.2f}", f"{row['error']:+.1%}", f"{row['after']:+.1%}"]
            lines.append([found["model"], found["setting"], row["plan"], *change])
    for cells in lines:
        click.echo(f"| {' | '.join(cells)} |" if markdown else "  ".join(f"{cell:>22}" for cell in cells))
    if errors:
        click.echo(f"\nmedian error {median(errors):.1%}, largest {max(errors):.1%}; after {median(after):.1%}")


if __name__ == "__main__":
    main()
