"""A wide MobileNetV2 pruned to the MACs of narrow ones, beside narrow ones trained for as many epochs (CIFAR-10).

    nice python -m benchmarks.compact train                   # hours; goes on where it was stopped
    python -m benchmarks.compact time                         # needs a quiet machine
    python -m benchmarks.compact table                        # markdown; runs nothing

The questions of Ghosh et al., "Pruning Compact ConvNets for Efficient Inference" (arXiv:2301.04502), at the size of
one machine. The width 1.4 is trained once; for each goal, the MACs of a narrower width, it is pruned and trained on,
and the narrower width is trained from its start for the same sum of epochs. Ways to prune: whole channels (ours), and
single weights of the 1x1 convolutions by their magnitude (the paper's), under one threshold or with the same share in
every layer. MACs of a sparse layer are those of its weights that are not zero, as the paper counts. Where the paper
trains until convergence on ImageNet, this trains `--epochs` and `--recover` passes over a part of CIFAR-10.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.alike import repaired
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.kept import changing, read
from benchmarks.models import MobileNetV2
from benchmarks.side_by_side import time_cells, time_networks, write_files
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.measure import environment
from deploypruner.progress import progress_for
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.sparse import SparseSettings
from deploypruner.schedules.one_shot import OneShotMasks
from deploypruner.sources.batches import Data
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training.layers import SparseLayer, choose_layers
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.finetune import finetune
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results" / "compact.json"
FOLDER = WORK / "compact"
WIDE, GOALS = 1.4, (1.0, 0.75)
CHANNELS, GLOBAL, UNIFORM = "channels", "weights, one threshold", "weights, the same share"
WAYS = (CHANNELS, GLOBAL, UNIFORM)
_LR, _RECOVERY_LR, _BATCH, _STATISTICS_BATCHES, _SCORING_BATCHES = 0.05, 0.01, 64, 50, 16
_HALVINGS = 16


@dataclass(frozen=True)
class Protocol:
    """What all networks have in common.

    Args:
        images: Training images.
        epochs: Of the wide network.
        recover: After pruning; a narrow one is trained for the sum.
        seed: Of order and augmentation.
    """

    images: int
    epochs: int
    recover: int
    seed: int

    @property
    def key(self) -> str:
        return f"{self.images} images, {self.epochs} + {self.recover} epochs, seed {self.seed}"

    def settings(self, epochs: int, lr: float) -> FinetuneSettings:
        return FinetuneSettings(
            epochs=epochs,
            lr=lr,
            batch_size=_BATCH,
            weight_decay=1e-4,
            distill=0.0 if lr == _LR else 0.5,
            amp="auto",
            channels_last=True,
            seed=1000 * self.seed,
        )


@dataclass(frozen=True)
class Subject:
    """The wide network, trained."""

    model: nn.Module
    graph: Graph
    data: Data
    protocol: Protocol


@dataclass(frozen=True)
class Made:
    """A pruned network before it is trained on.

    Args:
        module: With its zeros.
        regime: Holds them while it trains, None where channels are gone instead.
        macs: Of one image, without those of zeros.
        zeros: Share of the 1x1 convolutions' weights.
    """

    module: nn.Module
    regime: OneShotMasks | None
    macs: int
    zeros: float = 0.0


def macs_of(graph: Graph) -> int:
    """Multiply-adds of one image."""
    return graph.costs.macs()


def traced(module: nn.Module) -> Graph:
    return trace(module, (torch.zeros(2, 3, 32, 32),))


def by_channels(subject: Subject, goal: int) -> Made:
    """Channels by Taylor's scores under the budget of MACs; layers solved by least squares, as `compile` does."""
    criterion = criteria.get("taylor")()
    train, graph = subject.data.train, subject.graph
    batches = train.epoch(batch_size=32, seed=subject.protocol.seed, shuffle=True, augment=False)
    scores = score_groups(graph, criterion, list(islice(batches, _SCORING_BATCHES)))
    budget = Budget(goal / macs_of(graph))
    plan = allocate(graph, scores, budget, criterion="taylor", normalizer=criterion.normalizer)
    module = repaired(graph, plan.keep, train, seed=subject.protocol.seed)
    return Made(module, None, macs_of(traced(module)))


def by_weights(subject: Subject, goal: int, distribution: str) -> Made:
    """The smallest weights of the 1x1 convolutions go at once, as many as the goal asks (the paper's ways)."""
    graph = subject.graph
    layers = choose_layers(graph, SparseSettings(sparsity=0.5, layers=("1x1",)))

    def made(share: float) -> Made:
        settings = SparseSettings(sparsity=share, layers=("1x1",), distribution=distribution)
        student = copy.deepcopy(graph.module)
        regime = OneShotMasks([layer.weight for layer in layers], make_pattern("unstructured"), settings)
        regime.begin(student, 0)
        return Made(student, regime, macs_of(graph) - saved(layers, regime.masks), zeros_of(regime.masks))

    low, high = 1e-3, 1 - 1e-3  # fewer zeros than the goal needs, and more
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if made(middle).macs > goal else (low, middle)
    return made(high)


def saved(layers: tuple[SparseLayer, ...], masks: Mapping[str, torch.Tensor]) -> int:
    """Multiply-adds of one image that zeros spare."""
    return sum(round(layer.macs * float((~masks[layer.weight]).float().mean())) for layer in layers)


def zeros_of(masks: Mapping[str, torch.Tensor]) -> float:
    return 1 - sum(int(m.sum()) for m in masks.values()) / sum(m.numel() for m in masks.values())


_PRUNERS: dict[str, Callable[[Subject, int], Made]] = {
    CHANNELS: by_channels,
    GLOBAL: lambda subject, goal: by_weights(subject, goal, "global"),
    UNIFORM: lambda subject, goal: by_weights(subject, goal, "uniform"),
}


def dense(width: float, epochs: int, data: Data, protocol: Protocol) -> nn.Module:
    """The network of a width, trained or from the cache; its row is in the results, its files are written."""
    torch.manual_seed(protocol.seed)
    net, name = MobileNetV2(width), dense_name(width, epochs)
    path = place(protocol, name) / "weights.safetensors"
    if path.exists() and name in networks(protocol):
        net.load_state_dict(load_file(path))
        return net.eval()
    begun = time.process_time()
    history = finetune(
        net,
        None,
        data.train,
        protocol.settings(epochs, _LR),
        checkpoint=path.with_suffix(".checkpoint"),
        progress=progress_for(),
        label=name,
    )
    seconds = whole(time.process_time() - begun, epochs, history.resumed)
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    write_files(net, data.train, path.parent, sparse=False)
    row = {"percent": top1_percent(net.eval(), data.val), "macs": macs_of(traced(net)), "cpu_seconds": seconds}
    keep(protocol, name, {**row, "width": width, "epochs": epochs, "zeros": 0.0})
    return net


def dense_name(width: float, epochs: int) -> str:
    return f"width {width:g}, {epochs} epochs"


def whole(seconds: float, epochs: int, resumed: int) -> float | None:
    """CPU seconds of all epochs, from those of this process; None where it had none left to do."""
    return seconds * epochs / (epochs - resumed) if epochs > resumed else None


def pruned(subject: Subject, goal: float, macs: int, way: str) -> None:
    """One way to one goal, trained on; its files written."""
    protocol, data = subject.protocol, subject.data
    name = f"width {WIDE:g} to {goal:g} by {way}"
    if name in networks(protocol):
        return
    begun = time.process_time()
    made = _PRUNERS[way](subject, macs)
    choosing = time.process_time() - begun
    before = copy.deepcopy(made.module).eval()
    if made.regime is not None:
        made.regime.finish(before)
    _statistics(before, data, protocol)
    begun = time.process_time()
    history = finetune(
        made.module,
        subject.model,
        data.train,
        protocol.settings(protocol.recover, _RECOVERY_LR),
        checkpoint=place(protocol, name) / "weights.checkpoint",
        progress=progress_for(),
        label=name,
        regime=made.regime,
    )
    _statistics(made.module, data, protocol)
    seconds = whole(time.process_time() - begun, protocol.recover, history.resumed)
    row = {
        "goal": goal,
        "way": way,
        "macs": made.macs,
        "zeros": made.zeros,
        "percent_before": top1_percent(before, data.val),
        "percent": top1_percent(made.module.eval(), data.val),
        "cpu_seconds": None if seconds is None else choosing + seconds,
        "epochs": protocol.epochs + protocol.recover,
    }
    write_files(made.module, data.train, place(protocol, name), sparse=made.regime is not None)
    keep(protocol, name, row)


def _statistics(module: nn.Module, data: Data, protocol: Protocol) -> None:
    images = data.train.epoch(batch_size=_BATCH, seed=protocol.seed, shuffle=True, augment=True)
    reestimate_batchnorm(module, images, max_batches=_STATISTICS_BATCHES)


def place(protocol: Protocol, name: str) -> Path:
    """The folder of a network's weights and files."""
    folder = FOLDER / protocol.key.replace(",", "").replace(" ", "-") / name.replace(",", "").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def networks(protocol: Protocol) -> dict[str, Any]:
    """Name -> row of what is in the results."""
    rows: dict[str, Any] = read(RESULTS).get(protocol.key, {}).get("networks", {})
    return rows


def keep(protocol: Protocol, name: str, row: Mapping[str, Any]) -> None:
    """Enter a row into the results."""
    with changing(RESULTS) as found:
        found.setdefault(protocol.key, {"networks": {}})["networks"][name] = dict(row)
    click.echo(f"{name}: {row['percent']:.2f} % at {row['macs'] / 1e6:.1f} M MACs", err=True)


def markdown(key: str, found: Mapping[str, Any]) -> str:
    """Networks down; accuracy, work, hours and milliseconds across."""
    times = found.get("times", {}).get("rows", {})
    lines = [
        f"{key}:",
        "",
        "| | MACs | zeros in 1x1 | before training | top-1 | CPU hours | fp32 | int8 | int8, our kernels |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.get("networks", {}).items():
        before = f"{row['percent_before']:.1f} %" if "percent_before" in row else ""
        hours = "" if row["cpu_seconds"] is None else f"{row['cpu_seconds'] / 3600:.2f}"
        zeros = f"{row['zeros']:.0%}" if row["zeros"] else ""
        first = f"| {name} | {row['macs'] / 1e6:.1f} M | {zeros} | {before} | {row['percent']:.1f} % | {hours} |"
        lines.append(f"{first} {time_cells(times, name)} |")
    return "\n".join(lines)


_images = click.option("--images", default=10_000, show_default=True, help="training images")
_epochs = click.option("--epochs", default=6, show_default=True, help="of the wide network")
_recover = click.option("--recover", default=3, show_default=True, help="after pruning")
_seed = click.option("--seed", default=0, show_default=True)


@click.group()
def main() -> None:
    """Train, time, table."""
    torch.set_num_threads(1)


@main.command()
@_images
@_epochs
@_recover
@_seed
@click.option("--way", "ways", type=click.Choice(WAYS), multiple=True, default=WAYS)
@click.option("--goal", "goals", type=click.Choice(GOALS), multiple=True, default=GOALS)
def train(images: int, epochs: int, recover: int, seed: int, ways: tuple[str, ...], goals: tuple[float, ...]) -> None:
    """The wide network, its pruned ones, and the narrow ones; what is in the results is not done again."""
    protocol, data = Protocol(images, epochs, recover, seed), cifar10(images)
    wide = dense(WIDE, epochs, data, protocol)
    subject = Subject(wide, traced(wide), data, protocol)
    for goal in goals:
        macs = macs_of(traced(MobileNetV2(goal)))
        for way in ways:
            pruned(subject, goal, macs, way)
        dense(goal, epochs + recover, data, protocol)
    click.echo(markdown(protocol.key, read(RESULTS)[protocol.key]))


@main.command(name="time")
@_images
@_epochs
@_recover
@_seed
@click.option("--seconds", default=30.0, show_default=True)
def time_all(images: int, epochs: int, recover: int, seed: int, seconds: float) -> None:
    """Milliseconds of all files on one core, interleaved."""
    protocol = Protocol(images, epochs, recover, seed)
    first = dense_name(WIDE, epochs)  # what the others are compared with
    folders = {name: place(protocol, name) for name in (first, *(n for n in networks(protocol) if n != first))}
    rows = time_networks(folders, logs=FOLDER / "logs", seconds=seconds)
    with changing(RESULTS) as found:
        found[protocol.key]["times"] = {"environment": environment(), "rows": rows}
    click.echo(markdown(protocol.key, read(RESULTS)[protocol.key]))


@main.command()
def table() -> None:
    """What there is."""
    for key, found in (read(RESULTS) or {"nothing yet": {}}).items():
        click.echo(markdown(key, found) + "\n")


if __name__ == "__main__":
    main()
