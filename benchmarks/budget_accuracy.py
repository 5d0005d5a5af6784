"""The same latency three ways, with accuracy: a trained CIFAR ResNet under a speed-up, recovered alike.

    python -m benchmarks.baseline --net resnet20 --epochs 4      # once: the dense model
    python -m benchmarks.budget_accuracy plan --net resnet20 --speedup 2       # widths; needs a quiet machine
    python -m benchmarks.budget_accuracy train --net resnet20 --speedup 2      # accuracy of each, last epoch

The latency solver's widths are found as `deploypruner compile --speedup` does. Uniform shares and the global budget
of MACs get the largest share that is predicted within the same latency; all three are then timed side by side.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import numpy as np
import torch

from benchmarks.baseline import baseline
from benchmarks.budgets import CRITERION, STEP, race, rivals, share_of
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.models import NETS
from deploypruner.budget import Budget
from deploypruner.criteria import criteria
from deploypruner.graph import Graph, trace
from deploypruner.latency import build_latency_model, write_candidate
from deploypruner.prune.evidence import score_groups
from deploypruner.records import Artifact, Precision
from deploypruner.recover.batchnorm import reestimate_batchnorm
from deploypruner.recover.finetune import FinetuneSettings, finetune
from deploypruner.recover.validate import top1_percent
from deploypruner.search.meet import Request, meet

RESULTS = Path(__file__).parent / "results" / "budget_accuracy.json"
_SCORING_BATCHES, _BATCH, _STATISTICS_BATCHES = 16, 32, 50

_net = click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
_speedup = click.option("--speedup", default=2.0, show_default=True)
_precision = click.option("--precision", type=click.Choice(("fp32", "int8")), default="fp32", show_default=True)


@click.group()
def main() -> None:
    """Plan, then train."""
    torch.set_num_threads(1)


@main.command()
@_net
@_speedup
@_precision
def plan(net: str, speedup: float, precision: Precision) -> None:
    """Find the three plans and time them side by side."""
    graph = _graph(net)
    data = cifar10()
    epoch = data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True)
    batches = [batch for batch, _ in zip(epoch, range(_SCORING_BATCHES), strict=False)]
    scores = score_groups(graph, criteria.get(CRITERION)(), batches, seed=0)
    path = WORK / f"{net}.{precision}.onnx"
    write_candidate(graph, {}, precision, path)
    dense = Artifact(f"dense {precision}", path, "onnx", precision, "dense")
    asked = Request(
        graph=graph,
        scores=scores,
        budget=Budget(speedup=speedup),
        jobs=[(dense, "openvino")],
        normalizer=criteria.get(CRITERION).normalizer,
        step=STEP,
        say=lambda line: click.echo(line, err=True),
    )
    keep, found = meet(asked)
    model = build_latency_model(graph, found.setting, step=STEP)
    plans = {"solver": keep, **rivals(graph, scores, model, model.ms(keep))}
    measured = race(graph, dense, found.setting, plans)
    row = {
        "dense_ms": measured["dense"]["ms"],
        "dense_percent": top1_percent(graph.module, data.val),
        "plans": {
            name: {
                "importance": share_of(graph, scores, kept),
                "macs": graph.costs.macs(graph.removed(kept)) / graph.costs.macs(),
                **measured[name],
                "keep": {group: [int(c) for c in channels] for group, channels in kept.items()},
            }
            for name, kept in plans.items()
        },
    }
    _save(_key(net, precision, speedup), row)


@main.command()
@_net
@_speedup
@_precision
@click.option("--epochs", default=2, show_default=True)
@click.option("--train-limit", type=int, help="fine-tune on so many images only (the test set stays whole)")
@click.option("--seeds", default=1, show_default=True, help="runs of each plan")
def train(net: str, speedup: float, precision: str, epochs: int, train_limit: int | None, seeds: int) -> None:
    """Recover every plan alike and print the table; runs that are there already are kept."""
    key = _key(net, precision, speedup)
    row = _read()[key]
    graph, data = _graph(net), cifar10(train_limit)
    row |= {"epochs": epochs, "train_limit": train_limit}
    for name, found in row["plans"].items():
        keep = {group: np.array(channels) for group, channels in found["keep"].items()}
        for seed in range(len(found.setdefault("percents", [])), seeds):
            module = graph.cut(graph.removed(keep))
            plain = data.train.epoch(batch_size=64, seed=seed, shuffle=True, augment=True)
            reestimate_batchnorm(module, plain, max_batches=_STATISTICS_BATCHES)
            if not seed:
                found["percent_pruned"] = top1_percent(module, data.val)
            settings = FinetuneSettings(epochs=epochs, lr=0.02, channels_last=True, seed=1000 * seed)
            finetune(module, graph.module, data.train, settings, label=name)
            found["percents"].append(top1_percent(module, data.val))
            click.echo(f"{name}: {found['percent_pruned']:.2f} -> {found['percents'][-1]:.2f} %", err=True)
            _save(key, row)
    click.echo(table(_read()))


def table(rows: dict[str, Any]) -> str:
    """Markdown: one line per plan."""
    lines = [
        "| net | widths by | speed-up, measured [95 %] | MACs | speed-up x MACs | importance | pruned | recovered |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for key, row in rows.items():
        lines.append(f"| {key} | dense | 1 | 100 % | 1 | 100 % | | {row['dense_percent']:.2f} % |")
        for name, found in row["plans"].items():
            low, high = found["ci"]
            pruned = f"{found['percent_pruned']:.2f} %" if "percent_pruned" in found else ""
            runs = found.get("percents", [])
            spread = f" ± {stdev(runs):.2f}" if len(runs) > 1 else ""
            recovered = f"{mean(runs):.2f}{spread} %" if runs else ""
            lines.append(
                f"| | {name} | {found['ratio']:.2f}x [{low:.2f}, {high:.2f}] | {found['macs']:.1%} | "
                f"{found['ratio'] * found['macs']:.2f} | {found['importance']:.1%} | {pruned} | {recovered} |"
            )
    return "\n".join(lines)


def _graph(net: str) -> Graph:
    return trace(baseline(net), (torch.zeros(2, 3, 32, 32),))


def _key(net: str, precision: str, speedup: float) -> str:
    return f"{net} {precision} {speedup:g}x"


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _save(key: str, row: dict[str, Any]) -> None:
    part = RESULTS.with_suffix(".tmp")
    part.write_text(json.dumps(_read() | {key: row}))
    part.replace(RESULTS)


if __name__ == "__main__":
    main()
