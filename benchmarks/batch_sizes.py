"""How many large images to evaluate at once on a CPU: EfficientNet-Lite0 at 224, forward and layers solved anew.

    python -m benchmarks.batch_sizes             # prints a table; a few minutes on one core

CPU time of one thread, the best of all rounds; sizes take turns in every round.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice

import click
import numpy as np
import torch

from benchmarks.imagenet import efficientnet_lite0, photographs
from deploypruner.graph import Graph, trace
from deploypruner.train.reconstruct import reconstruct

SIZES = (4, 6, 8, 16, 32, 64)


def spent(work: Callable[[], object]) -> float:
    """CPU seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def forward(graph: Graph, size: int) -> float:
    """CPU milliseconds of one image."""
    images = torch.randn(size, 3, 224, 224)
    with torch.no_grad():
        return 1e3 * spent(lambda: graph.module(images)) / size


def solved(graph: Graph, size: int, samples: int) -> float:
    """CPU seconds in which all layers of three quarters of the channels are solved anew."""
    keep = {group.id: np.arange(group.size * 3 // 4) for group in graph.groups}
    module = graph.cut(graph.removed(keep)).eval()
    epoch = photographs().train.epoch(batch_size=size, seed=0, shuffle=True, augment=False)
    batches = list(islice(epoch, -(-samples // size)))
    return spent(lambda: reconstruct(graph, keep, module, batches))


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--samples", default=128, show_default=True, help="photographs that layers are solved on")
def main(rounds: int, samples: int) -> None:
    """Time and print."""
    torch.set_num_threads(1)
    graph = trace(efficientnet_lite0(), (torch.zeros(2, 3, 224, 224),))
    once: dict[int, list[float]] = {size: [] for size in SIZES}
    whole: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            once[size].append(forward(graph, size))
            whole[size].append(solved(graph, size, samples))
    click.echo(f"| images at once | forward, ms an image | layers solved on {samples}, s |\n|--:|--:|--:|")
    for size in SIZES:
        click.echo(f"| {size} | {min(once[size]):.0f} | {min(whole[size]):.0f} |")


if __name__ == "__main__":
    main()
