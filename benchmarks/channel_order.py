"""Which channels of a given width stay: Taylor's order against structured OBS, after reconstruction, untrained.

    python -m benchmarks.channel_order run --net resnet20        # goes on where it was interrupted
    python -m benchmarks.channel_order table

Widths are decided first, by uniform shares and by Taylor's scores on multiply-adds, and are the same for every order.
Layers are then reconstructed on 256 training images; KL to the dense outputs and top-1 are on 1,000 test images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from benchmarks.baseline import baseline, path_of, start
from benchmarks.cifar10 import cifar10
from benchmarks.kept import changing, judged_lines, not_in, read
from benchmarks.models import NETS
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.channels.learned.regime import settled
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.recipe.budget import Budget
from deploypruner.search.judge import Judge
from deploypruner.train.batches import Batch
from deploypruner.train.readers import order_by_readers

RESULTS = Path(__file__).parent / "results" / "channel_order.json"
BUDGETS, SCOPES = (0.7, 0.5, 0.35), ("uniform", "global")
_results = click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


@click.group()
def main() -> None:
    """Run, then table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(NETS)), default="resnet20", show_default=True)
@click.option("--held-out", default=1000, show_default=True)
@click.option("--scoring", default=512, show_default=True)
@_results
def run(net: str, held_out: int, scoring: int, results: Path) -> None:
    """Judge every order at every width."""
    not_in(RESULTS, None if (held_out, scoring) == (1000, 512) else held_out, results)
    model = baseline(net) if path_of(net).exists() else start(net)
    data = cifar10(scoring + 256, held_out)
    batches = list(data.train.epoch(batch_size=64))
    graph = trace(model, batches[0][0])
    solving = batches[-4:]
    scores = score_groups(graph, criteria.get("taylor")(), batches[: scoring // 64])
    held = [(inputs, None) for inputs, _ in data.val.epoch(batch_size=250)]
    labelled = list(data.val.epoch(batch_size=250))
    judges = Judge(graph, solving=solving, held_out=held), Judge(graph, solving=solving, held_out=labelled)
    orders = orders_of(graph, scores, solving)
    for scope in SCOPES:
        for budget in BUDGETS:
            plan = allocate(graph, scores, Budget(macs=budget), criterion="taylor", scope=scope, step=8)
            widths = {group.id: len(group.keep) for group in plan.groups}
            for name, (order, seconds) in orders.items():
                key = f"{net} {scope} {budget:g} {name}"
                if key in read(results):
                    continue
                keep = settled(graph, order, widths)
                module = graph.cut(graph.removed(keep)).eval()
                by_kl, by_label = judges[0].repair(module, keep, ways=1)[0], judges[1].verdict(module)
                row = {"kl": by_kl.loss, "agreement": by_kl.top1, "loss": by_label.loss, "top1": by_label.top1}
                with changing(results) as rows:
                    rows[key] = {**row, "dense": judges[1].dense.top1, "seconds": seconds}
                click.echo(f"{key}: KL {by_kl.loss:.3f}, top-1 {by_label.top1:.1f} %", err=True)
    click.echo(markdown(read(results)))


@main.command()
@_results
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


def orders_of(
    graph: Graph, scores: Mapping[str, Tensor], solving: list[Batch]
) -> dict[str, tuple[dict[str, np.ndarray], float]]:
    """Name -> order of every group's channels, and the seconds it took; scores of Taylor are given."""
    taylor, rng = by_importance(scores), np.random.default_rng(0)
    widest = max(len(group.members) for group in graph.groups)

    def inner() -> dict[str, np.ndarray]:
        found = order_by_readers(graph, taylor, solving)
        few = {group.id for group in graph.groups if len(group.members) < min(8, widest)}
        return {name: found[name] if name in few else channels for name, channels in taylor.items()}

    ways: dict[str, Callable[[], dict[str, np.ndarray]]] = {
        "taylor": lambda: taylor,
        "magnitude": lambda: by_importance(score_groups(graph, criteria.get("magnitude")(), None)),
        "obs": lambda: order_by_readers(graph, taylor, solving),
        "obs, streams by taylor": inner,
        "random": lambda: {name: rng.permutation(channels) for name, channels in taylor.items()},
    }
    found = {}
    for name, way in ways.items():
        begun = time.process_time()
        found[name] = way(), time.process_time() - begun
    return found


def markdown(rows: dict[str, Any]) -> str:
    """One line a width, KL and top-1 of each order."""
    names = list(dict.fromkeys(key.split(" ", 3)[3] for key in rows))
    lines = ["| net | widths by | MACs | " + " | ".join(names) + " |", "|---|---|--:|" + "--:|" * len(names)]
    return "\n".join(lines + judged_lines(rows, 3, names))


if __name__ == "__main__":
    main()
