"""What each step of recovery gives back: the same channels removed from a trained CIFAR ResNet, recovered ten ways.

    python -m benchmarks.baseline --net resnet20 --epochs 4        # once: the dense model
    python -m benchmarks.recovery --net resnet20                   # prints a table, adds to results/recovery.json

Nothing, batch norm re-estimated, layers reconstructed, both, and each of these two before fine-tuning with and
without the dense model as teacher, without labels, and with averaged weights. Accuracies are on the test images,
last epoch. An interrupted run continues with the row it was in.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from torch import nn

import deploypruner as dp
from benchmarks.baseline import baseline
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.models import NETS
from deploypruner.graph import Graph
from deploypruner.progress import progress_for
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.adapted import Unlabelled
from deploypruner.train.batches import Batch
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.finetune import finetune
from deploypruner.train.reconstruct import reconstruct
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results" / "recovery.json"
_BATCH, _STATISTICS_BATCHES, _STEP = 64, 50, 4


@dataclass(frozen=True)
class Way:
    """One way to recover.

    Args:
        reconstruct: Solve layers on so many samples first, 0 for no.
        batchnorm: Re-estimate batch norm, before and after training.
        train: Fine-tune.
        distill: Weight of the teacher, 0 for none at all.
        labels: Whether training sees labels.
        ema: Decay of the averaged weights.
    """

    reconstruct: int = 0
    batchnorm: bool = True
    train: bool = True
    distill: float = 0.5
    labels: bool = True
    ema: float = 0.0


WAYS = {
    "nothing": Way(batchnorm=False, train=False),
    "batch norm": Way(train=False),
    "reconstruction": Way(reconstruct=256, batchnorm=False, train=False),
    "reconstruction, batch norm": Way(reconstruct=256, train=False),
    "batch norm, labels": Way(distill=0.0),
    "reconstruction, batch norm, labels": Way(reconstruct=256, distill=0.0),
    "batch norm, labels + teacher": Way(),
    "reconstruction, batch norm, labels + teacher": Way(reconstruct=256),
    "batch norm, teacher": Way(labels=False),
    "batch norm, labels + teacher, averaged": Way(ema=0.99),
}


@click.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--macs", type=float, multiple=True, default=(0.5, 0.3), show_default=True)
@click.option("--epochs", default=2, show_default=True)
@click.option("--train-limit", type=int, help="use so many training images only")
@click.option("--threads", default=1, show_default=True)
def main(net: str, macs: tuple[float, ...], epochs: int, train_limit: int | None, threads: int) -> None:
    """Recover in every way and print the table."""
    torch.set_num_threads(threads)
    graph = dp.trace(baseline(net), torch.zeros(2, 3, 32, 32))
    data = cifar10(train_limit)
    for share in macs:
        key = f"{net} magnitude macs {share:g} epochs {epochs} train {train_limit or 'all'}"
        plan = dp.plan(graph, budget=dp.Budget(macs=share), step=_STEP)
        removed = dp.remove(graph, plan)
        rows = _read().get(key, {})
        rows.setdefault("dense", {"percent": top1_percent(graph.module, data.val), "seconds": 0.0})
        _write(_read() | {key: rows})
        for name, way in WAYS.items():
            if name in rows:
                continue
            begun = time.perf_counter()
            module = _recovered(graph, plan, removed, way, data.train, epochs, WORK / f"{key} {name}.checkpoint")
            seconds = time.perf_counter() - begun
            rows[name] = {"percent": top1_percent(module, data.val), "seconds": seconds, **asdict(way)}
            click.echo(f"{key}: {name}: {rows[name]['percent']:.2f} % in {seconds:.0f} s", err=True)
            _write(_read() | {key: rows})
    click.echo(table(_read()))


def _recovered(
    graph: Graph, plan: dp.Plan, removed: nn.Module, way: Way, train: Any, epochs: int, checkpoint: Path
) -> nn.Module:
    def augmented() -> Iterator[Batch]:
        return train.epoch(batch_size=_BATCH, seed=0, shuffle=True, augment=True)

    module = copy.deepcopy(removed)
    if way.reconstruct:
        reconstruct(graph, plan.keep, module, islice(augmented(), way.reconstruct // _BATCH))
    if way.batchnorm:
        reestimate_batchnorm(module, augmented(), max_batches=_STATISTICS_BATCHES)
    if way.train:
        settings = FinetuneSettings(epochs=epochs, distill=way.distill, ema=way.ema, channels_last=True)
        finetune(
            module,
            graph.module if way.distill else None,
            train if way.labels else Unlabelled(train),
            settings,
            checkpoint=checkpoint,
            progress=progress_for(),
        )
        checkpoint.unlink(missing_ok=True)
        reestimate_batchnorm(module, augmented(), max_batches=_STATISTICS_BATCHES)
    return module.eval()


def table(results: dict[str, Any]) -> str:
    """Markdown: one line per way, one table per setting."""
    lines = []
    for key, rows in results.items():
        lines += ["", key, "", "| recovery | accuracy | seconds |", "|---|--:|--:|"]
        lines += [f"| {name} | {row['percent']:.2f} % | {row['seconds']:.0f} |" for name, row in rows.items()]
    return "\n".join(lines)


def _read() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _write(results: dict[str, Any]) -> None:
    part = RESULTS.with_suffix(".tmp")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(RESULTS)


if __name__ == "__main__":
    main()
