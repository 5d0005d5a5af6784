"""CIFAR ResNets at a fraction of their MACs: DeployPruner beside torch-pruning, recovered by the same fine-tuning.

Run `python -m benchmarks.baseline` once, then `python -m benchmarks.cifar10_resnet --help`. Every case is written to
`benchmarks/results/` when it is done; a second run continues with what is missing.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
import torch_pruning as tp
from torch import nn

from benchmarks.baseline import baseline
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.models import PUBLISHED
from benchmarks.pruners import IMPORTANCE, OURS, TOOLS, CannotPrune, Case, Job, Scoring, macs_of, params_of, prune
from deploypruner.progress import progress_for
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.batches import Data
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.finetune import finetune
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results"
SCORING_SAMPLES, SCORING_BATCH = 512, 32
STATISTICS_BATCHES = 50


@dataclass(frozen=True)
class Protocol:
    """What every case has in common, and what makes two result files comparable."""

    net: str
    macs: float
    epochs: int
    seeds: int
    train_limit: int | None
    lr: float

    def settings(self, seed: int, epochs: int) -> FinetuneSettings:
        return FinetuneSettings(epochs=epochs, lr=self.lr, channels_last=True, seed=1000 * seed)

    @property
    def path(self) -> Path:
        size = "full" if self.train_limit is None else str(self.train_limit)
        return RESULTS / f"{self.net}_macs{self.macs:g}_epochs{self.epochs}_lr{self.lr:g}_train-{size}.json"


@click.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option("--macs", default=0.5, show_default=True, help="fraction of the dense MACs that may remain")
@click.option("--epochs", default=5, show_default=True, help="fine-tuning epochs after pruning")
@click.option("--seeds", default=1, show_default=True, help="runs per case")
@click.option("--lr", default=0.02, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--train-limit", type=int, help="fine-tune on so many images only (the test set stays whole)")
@click.option("--scope", "scopes", type=click.Choice(["all", "blocks"]), multiple=True, help="default: both")
@click.option("--tool", "tools", type=click.Choice(sorted(TOOLS)), multiple=True, help="default: both")
@click.option("--step", "steps", type=int, multiple=True, help="widths are multiples of this; default: 1")
@click.option("--criterion", "chosen", multiple=True, help="default: taylor and magnitude; `every` for all there are")
def main(
    net: str,
    macs: float,
    epochs: int,
    seeds: int,
    lr: float,
    threads: int,
    train_limit: int | None,
    scopes: tuple[str, ...],
    tools: tuple[str, ...],
    steps: tuple[int, ...],
    chosen: tuple[str, ...],
) -> None:
    """Prune, recover, and print last-epoch test accuracy as a markdown table."""
    torch.set_num_threads(threads)
    protocol = Protocol(net, macs, epochs, seeds, train_limit, lr)
    data, dense = cifar10(train_limit), baseline(net)
    for scope in scopes or ("all", "blocks"):
        for step in steps or (1,):
            for tool in tools or sorted(TOOLS):
                for criterion in _criteria(tool, chosen):
                    case = Case(tool, criterion, scope, step)
                    if len(_document(protocol, dense, data)["cases"].get(case.name, {}).get("runs", ())) < seeds:
                        result = _run(case, protocol, dense, data)
                        _save(protocol.path, case, result, _document(protocol, dense, data))
    click.echo(table(_document(protocol, dense, data)))


def _criteria(tool: str, chosen: tuple[str, ...]) -> list[str]:
    """Names of one tool among those that were asked for."""
    known = list(OURS if tool == "deploypruner" else IMPORTANCE)
    return known if "every" in chosen else [name for name in chosen or ("taylor", "magnitude") if name in known]


def _run(case: Case, protocol: Protocol, dense: nn.Module, data: Data) -> dict[str, Any]:
    """All seeds of one case; the seed decides the scoring samples and the fine-tuning."""
    runs = []
    for seed in range(protocol.seeds):
        begun = time.perf_counter()
        learning = protocol.settings(seed, max(1, protocol.epochs // 2))
        job = Job(protocol.net, dense, protocol.macs, _scoring(data, seed), data, learning)
        try:
            pruned = prune(case, job)
        except CannotPrune as error:
            return asdict(case) | {"failed": str(error), "runs": [{"seed": s} for s in range(protocol.seeds)]}
        module = pruned.module
        run: dict[str, Any] = {
            "seed": seed,
            "macs": macs_of(module),
            "params": params_of(module),
            "masked_vs_removed": pruned.proof,
        }
        batches = data.train.epoch(batch_size=128, seed=seed, shuffle=True, augment=False)
        reestimate_batchnorm(module, batches, max_batches=STATISTICS_BATCHES)
        run["statistics_percent"] = top1_percent(module, data.val)
        name = f"{protocol.path.stem}-{case.name}-{seed}".replace(" ", "-")
        history = finetune(
            module,
            dense,
            data.train,
            protocol.settings(seed, protocol.epochs - pruned.epochs),
            checkpoint=WORK / f"{name}.checkpoint",
            progress=progress_for(),
            label=f"{case.name}, seed {seed}",
        )
        run["loss_by_epoch"] = [epoch.loss for epoch in history.epochs]
        run["percent"] = top1_percent(module, data.val)
        run["seconds"] = time.perf_counter() - begun
        runs.append(run)
    return asdict(case) | {"runs": runs}


def _scoring(data: Data, seed: int) -> Scoring:
    batches = data.train.epoch(batch_size=SCORING_BATCH, seed=seed, shuffle=True, augment=False)
    return [batch for batch, _ in zip(batches, range(SCORING_SAMPLES // SCORING_BATCH), strict=False)]


def _document(protocol: Protocol, dense: nn.Module, data: Data) -> dict[str, Any]:
    """What an earlier run left, or the dense row alone."""
    if protocol.path.exists():
        found: dict[str, Any] = json.loads(protocol.path.read_text())
        return found
    return {
        "protocol": asdict(protocol),
        "dense": {"macs": macs_of(dense), "params": params_of(dense), "percent": top1_percent(dense, data.val)},
        "versions": {
            "torch": torch.__version__,
            "torch-pruning": tp.__version__,
            "python": platform.python_version(),
        },
        "cases": {},
    }


def _save(path: Path, case: Case, result: dict[str, Any], document: dict[str, Any]) -> None:
    """Add one case to the file; another process may have added others meanwhile."""
    path.parent.mkdir(exist_ok=True)
    document["cases"][case.name] = result
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(path)


def table(document: dict[str, Any]) -> str:
    """Markdown: one line per case, best first, last-epoch accuracy as mean ± standard deviation over the seeds."""
    dense = document["dense"]
    lines = [
        "| tool | criterion | channels | step | MACs | params | with statistics | recovered | |",
        "| --- | --- | --- | --: | --: | --: | --: | --: | --: |",
        f"| dense | | | | 100.0 % | {dense['params']:,} | | {dense['percent']:.2f} % | |",
    ]
    for case in sorted(document["cases"].values(), key=_accuracy, reverse=True):
        start = f"| {case['tool']} | {case['criterion']} | {case['scope']} | {case['step']} |"
        if "failed" in case:
            lines.append(f"{start} failed: {case['failed']} | | | | |")
            continue
        runs = case["runs"]
        final = [run["percent"] for run in runs]
        spread = f" ± {statistics.stdev(final):.2f}" if len(final) > 1 else ""
        lines.append(
            f"{start} {_mean(runs, 'macs') / dense['macs']:.1%} | {_mean(runs, 'params'):,.0f} "
            f"| {_mean(runs, 'statistics_percent'):.2f} % "
            f"| {statistics.mean(final):.2f}{spread} % | {statistics.mean(final) - dense['percent']:+.2f} |"
        )
    return "\n".join(lines)


def _accuracy(case: dict[str, Any]) -> float:
    return 0.0 if "failed" in case else _mean(case["runs"], "percent")


def _mean(runs: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(run[key] for run in runs)


if __name__ == "__main__":
    main()
