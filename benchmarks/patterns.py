"""Sparse patterns and schedules on CIFAR-10 at the same sparsity under the same recovery.

    nice python -m benchmarks.patterns --net resnet20 --epochs 10 --seeds 3
    nice python -m benchmarks.patterns --train-limit 2560 --epochs 3 --test-limit 2000     # a quick look

Every run starts from the same trained network and differs in the masks alone; the accuracy is the last epoch's. An
interrupted script goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click
import torch

from benchmarks.baseline import baseline
from benchmarks.cifar10 import WORK, cifar10
from deploypruner.graph import trace
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.schedules import schedules, sparse_regime
from deploypruner.sources.batches import Data
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training import SparseRegime
from deploypruner.sparsity.training.layers import choose_layers
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.finetune import finetune
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results"
FREE, FIXED = ("unstructured", "nm64", "1x4", "2x4", "4x4"), ("2:4", "1:4")
_STATISTICS_BATCHES, _BATCH = 20, 128


_SCHEDULES = tuple(schedules.describe(to="weights"))


@dataclass(frozen=True)
class Case:
    """One run.

    Args:
        pattern: Sparse pattern.
        sparsity: Share of zeros, None where the pattern says it.
        schedule: How it is filled.
        distribution: Over the layers.
        seed: Of the training.
    """

    pattern: str
    sparsity: float | None
    schedule: str
    distribution: str
    seed: int

    @property
    def share(self) -> float:
        return self.sparsity or make_pattern(self.pattern).sparsity or 0.0

    @property
    def key(self) -> str:
        return f"{self.pattern} {self.share:.0%} {self.schedule} {self.distribution} seed {self.seed}"


def cases(
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    names: tuple[str, ...],
    *,
    distribution: str,
    seeds: int,
) -> Iterator[Case]:
    """All runs, seed by seed, so that an interrupted table is a whole one of fewer seeds."""
    free = [pattern for pattern in patterns if pattern not in FIXED]
    fixed = [pattern for pattern in patterns if pattern in FIXED]
    for seed in range(seeds):
        for sparsity, pattern, schedule in product(sparsities, free, names):
            yield Case(pattern, sparsity, schedule, distribution, seed)
        for pattern, schedule in product(fixed, names):
            yield Case(pattern, None, schedule, distribution, seed)


def run(case: Case, net: str, data: Data, *, epochs: int, lr: float, checkpoint: Path) -> dict[str, Any]:
    """Train one case."""
    teacher = baseline(net)
    graph = trace(teacher, (torch.zeros(2, 3, 32, 32),))
    student = copy.deepcopy(graph.module)  # the graph's weights are the teacher's own
    settings = SparseSettings(sparsity=case.sparsity, schedule=case.schedule, distribution=case.distribution)
    layers = choose_layers(graph, settings)
    regime = sparse_regime(case.schedule)([layer.weight for layer in layers], make_pattern(case.pattern), settings)
    begun = time.perf_counter()
    if epochs:
        recipe = FinetuneSettings(epochs=epochs, lr=lr, batch_size=_BATCH, channels_last=True, seed=case.seed)
        finetune(student, teacher, data.train, recipe, checkpoint=checkpoint, regime=regime)
    else:
        regime.begin(student, 0)
        regime.finish(student)
    seconds = time.perf_counter() - begun
    checkpoint.unlink(missing_ok=True)
    reestimate_batchnorm(
        student,
        data.train.epoch(batch_size=64, seed=case.seed, shuffle=True, augment=True),
        max_batches=_STATISTICS_BATCHES,
    )
    return {"percent": top1_percent(student, data.val), "seconds": seconds, **count(regime)}


def count(regime: SparseRegime) -> dict[str, Any]:
    """Zeros in the layers that follow the pattern."""
    kept = {name: int(mask.sum()) for name, mask in regime.masks.items()}
    weights = {name: mask.numel() for name, mask in regime.masks.items()}
    return {"zeros": 1 - sum(kept.values()) / sum(weights.values()), "kept": kept, "weights": weights}


def _read(path: Path) -> dict[str, Any]:
    """What is in the results, empty before the first."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


def table(found: dict[str, Any]) -> str:
    """Markdown: patterns and sparsities down, schedules across; mean and deviation over seeds."""
    runs: dict[tuple[str, str], dict[str, list[float]]] = {}
    zeros: dict[tuple[str, str], list[float]] = {}
    for row in found["runs"].values():
        place = (row["pattern"], f"{row['sparsity']:.0%}")
        runs.setdefault(place, {}).setdefault(row["schedule"], []).append(row["percent"])
        zeros.setdefault(place, []).append(row["zeros"])
    names = sorted({name for by_schedule in runs.values() for name in by_schedule})
    lines = [f"| pattern | asked | zeros | {' | '.join(names)} |", f"|---|--:|--:|{'--:|' * len(names)}"]
    for place, by_schedule in sorted(runs.items(), key=lambda item: (item[0][1], item[0][0])):
        cells = [_cell(by_schedule.get(name, [])) for name in names]
        lines.append(f"| {place[0]} | {place[1]} | {mean(zeros[place]):.1%} | {' | '.join(cells)} |")
    return f"dense: {found['dense_percent']:.2f} %\n\n" + "\n".join(lines)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    return f"{mean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


@click.command()
@click.option("--net", default="resnet20", show_default=True)
@click.option("--pattern", "patterns", multiple=True, default=(*FREE, *FIXED), show_default=True)
@click.option("--sparsity", "sparsities", multiple=True, type=float, default=(0.7, 0.8, 0.9), show_default=True)
@click.option("--schedule", "names", multiple=True, default=_SCHEDULES, show_default=True)
@click.option("--distribution", default="global", show_default=True)
@click.option("--epochs", default=10, show_default=True)
@click.option("--lr", default=0.02, show_default=True)
@click.option("--seeds", default=1, show_default=True)
@click.option("--train-limit", type=int, help="train on so many images only")
@click.option("--test-limit", type=int, help="judge on so many images only")
@click.option("--threads", default=1, show_default=True)
def main(
    net: str,
    patterns: tuple[str, ...],
    sparsities: tuple[float, ...],
    names: tuple[str, ...],
    distribution: str,
    epochs: int,
    lr: float,
    seeds: int,
    train_limit: int | None,
    test_limit: int | None,
    threads: int,
) -> None:
    """Train every case that is not in the results yet, and print the table.

    With --epochs 0 masks are chosen one-shot and only batch norm is re-estimated.
    """
    if not epochs:
        names = ("one-shot",)
    torch.set_num_threads(threads)
    data = cifar10(train_limit, test_limit)
    said = f"{net}_epochs{epochs}_lr{lr:g}_train-{train_limit or 'full'}_test-{test_limit or 'full'}"
    path = RESULTS / f"patterns_{said}.json"
    found = _read(path) or {"runs": {}}
    found.setdefault("dense_percent", top1_percent(baseline(net), data.val))
    for case in cases(patterns, sparsities, names, distribution=distribution, seeds=seeds):
        if case.key in found["runs"]:
            continue
        row = run(case, net, data, epochs=epochs, lr=lr, checkpoint=WORK / f"patterns_{said}_{case.key}.checkpoint")
        about = {"pattern": case.pattern, "sparsity": case.share, "schedule": case.schedule, "seed": case.seed}
        found = _read(path) or found  # another process may have added cases meanwhile
        found["runs"][case.key] = {**about, "distribution": distribution, **row}
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(found, indent=1) + "\n")
        part.replace(path)
        click.echo(
            f"{case.key}: {row['percent']:.2f} % at {row['zeros']:.1%} zeros, {row['seconds']:.0f} s", err=True
        )
    click.echo(table(found))


if __name__ == "__main__":
    main()
