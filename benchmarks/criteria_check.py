"""Criteria beside the oracle on a trained network, and what scoring costs on ResNet-50 at 224.

Run it as `python -m benchmarks.criteria_check` (both parts) or with `--part rank` or `--part cost`.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import click
import torch

from benchmarks.baseline import baseline
from benchmarks.cifar10 import cifar10
from deploypruner.channels.criteria import Criterion, criteria
from deploypruner.channels.criteria.activation import Activation
from deploypruner.channels.criteria.hessian import Hessian
from deploypruner.channels.criteria.taylor import Taylor
from deploypruner.channels.rank_agreement import agreements, oracle, table
from deploypruner.channels.statistics import score_groups
from deploypruner.channels.statistics.passes import Batch, Passes, differentiate
from deploypruner.graph import Graph, trace
from deploypruner.graph.inputs import call
from deploypruner.losses import label_parts
from deploypruner.sources.torchvision_ops import import_torchvision

RESULTS = Path(__file__).parent / "results"
VARIANTS: dict[str, Criterion] = {
    **{name: criteria.get(name)() for name in criteria if name not in ("oracle", "pdp", "dtp")},
    "taylor group": Taylor(of="group"),
    "taylor individual": Taylor(of="individual"),
    "taylor order 2": Taylor(order=2, probes=4),
    "hessian 4 probes": Hessian(probes=4),
    "apoz": Activation(statistic="apoz"),
}
SIZES = (1, 4, 16, 32, 64, 256)  # of minibatches on the same images: Taylor squares a derivative of each
PLAIN = ("nothing", "forward", "forward and backward")


def rank(net: str, samples: int, batch: int) -> list[dict[str, object]]:
    """Correlations on the CIFAR network."""
    data = cifar10(train_limit=5000)
    epoch = data.train.epoch(batch_size=batch, seed=0, shuffle=True, augment=False)
    batches = list(islice(epoch, max(1, samples // batch)))
    graph = trace(baseline(net), torch.zeros(2, 3, 32, 32))
    begun = time.perf_counter()

    def said(name: str) -> None:
        click.echo(f"{name}: done after {time.perf_counter() - begun:.0f} s", err=True)

    truth = oracle(graph, batches)
    said("oracle")
    found = agreements(graph, VARIANTS, batches, truth=truth, on_done=said)
    for size in SIZES:
        name = f"taylor, by {size}"
        found += agreements(graph, {name: Taylor()}, _by(size, batches), truth=truth, on_done=said)
    click.echo(table(found))
    return [vars(a) for a in found]


def _by(size: int, batches: list[Batch]) -> list[Batch]:
    """The same images in minibatches of another size."""
    images = torch.cat([inputs[0] for inputs, _ in batches])
    labels = torch.cat([part for _, labels in batches for part in label_parts(labels)])
    return [((x,), y) for x, y in zip(images.split(size), labels.split(size), strict=True)]


def cost(images: int) -> list[dict[str, object]]:
    """Each in a process of its own, for its own peak memory; all of them branch off after tracing."""
    torch.manual_seed(0)
    graph = trace(import_torchvision().models.resnet50(), torch.zeros(2, 3, 224, 224))
    batches: list[Batch] = [((torch.randn(images, 3, 224, 224),), torch.arange(images))]
    rows: list[dict[str, object]] = []
    forking = get_context("fork")
    for name in (*PLAIN, *VARIANTS):
        receiving, sending = forking.Pipe(duplex=False)
        child = forking.Process(target=one, args=(name, graph, batches, sending))
        child.start()
        row = receiving.recv()
        child.join()
        rows.append(row)
        both = next((r["seconds"] for r in rows if r["name"] == "forward and backward"), None)
        ratio = "" if both is None else f"{row['seconds'] / both:.2f} x forward and backward"
        click.echo(f"{name:<22}{row['seconds']:>8.2f} s {row['peak_mib']:>7.0f} MiB  {ratio}")
    return rows


def one(name: str, graph: Graph, batches: list[Batch], result: Connection) -> None:
    """Send processor time on one thread, and peak memory, of one way to look at ResNet-50."""
    work: Callable[[], object] = {
        "nothing": lambda: None,
        "forward": lambda: _forward(graph, batches),
        "forward and backward": lambda: _backward(graph, batches),
    }.get(name) or (lambda: score_groups(graph, VARIANTS[name], batches))
    begun = time.process_time()  # one thread: what other programs do meanwhile does not count
    work()
    seconds = time.process_time() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result.send({"name": name, "seconds": seconds, "peak_mib": peak})


def _forward(graph: Graph, batches: list[Batch]) -> None:
    passes = Passes(graph, batches, seed=0)
    with torch.no_grad():
        for _, parts in passes.minibatches():
            for part in parts:
                passes.loss(part, call(passes.module, part.inputs)).item()


def _backward(graph: Graph, batches: list[Batch]) -> None:
    passes = Passes(graph, batches, seed=0)
    for _, parts in passes.minibatches():
        for part in parts:
            loss = passes.loss(part, call(passes.module, part.inputs))
            differentiate(loss, list(passes.weights.values()))


@click.command()
@click.option("--part", type=click.Choice(("rank", "cost", "both")), default="both", show_default=True)
@click.option("--net", default="resnet20", show_default=True)
@click.option("--samples", default=256, show_default=True, help="Training images of the rank correlation.")
@click.option("--batch", default=16, show_default=True, help="Of its minibatches: derivatives are squared in each.")
@click.option("--images", default=8, show_default=True, help="Images of the one minibatch that is timed.")
def main(part: str, net: str, samples: int, batch: int, images: int) -> None:
    """Print both tables and save them under results."""
    torch.set_num_threads(1)
    path = RESULTS / "criteria_check.json"
    document = json.loads(path.read_text()) if path.exists() else {}
    if part in ("rank", "both"):
        document["rank"] = {"net": net, "samples": samples, "batch": batch, "rows": rank(net, samples, batch)}
    if part in ("cost", "both"):
        document["cost"] = {"net": "resnet50 at 224", "images": images, "threads": 1, "rows": cost(images)}
    path.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
