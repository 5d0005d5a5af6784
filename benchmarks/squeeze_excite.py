"""Where global magnitude takes its zeros in a net with squeeze-excitation, and what sparse SE layers alone cost.

    nice python -m benchmarks.squeeze_excite --epochs 20
    nice python -m benchmarks.squeeze_excite --train-limit 5000 --test-limit 1000 --epochs 4 --width 0.5    # a quick
    look
Ghosh et al. (arXiv:2301.04502) find that SE layers become far sparser than others and bear over 99 %. The net is a
small one in the manner of MobileNetV3, trained here on CIFAR-10; an interrupted training goes on where it stopped.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.cifar10 import WORK, cifar10
from benchmarks.models import SENet
from deploypruner.graph import Graph, trace
from deploypruner.progress import progress_for
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.sparse import KINDS, SparseSettings
from deploypruner.schedules.one_shot import OneShotMasks
from deploypruner.sources.batches import Data
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.training.layers import SparseLayer, choose_layers
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.finetune import finetune
from deploypruner.train.validate import top1_percent

RESULTS = Path(__file__).parent / "results"
GLOBAL, ONLY_SE = (0.5, 0.7, 0.8, 0.9), (0.9, 0.95, 0.99, 0.999)
_STATISTICS_BATCHES = 20
_PARTS = {"se.fc1": "SE-fc1", "se.fc2": "SE-fc2", "expand": "1x1 expand", "project": "1x1 project"}


def part(layer: SparseLayer) -> str:
    """ "SE-fc1", "1x1 expand", ..., or the layer's kind."""
    return _PARTS.get(layer.name.rpartition("blocks.")[2].partition(".")[2], layer.kind)


def trained(width: float, data: Data, *, epochs: int, name: str) -> nn.Module:
    """The dense net, from the cache or trained."""
    torch.manual_seed(0)
    net, path = SENet(width), WORK / f"{name}.safetensors"
    if path.exists():
        net.load_state_dict(load_file(path))
        return net.eval()
    settings = FinetuneSettings(
        epochs=epochs, lr=0.1, batch_size=128, weight_decay=5e-4, distill=0.0, channels_last=True, seed=0
    )
    checkpoint = WORK / f"{name}.checkpoint"
    finetune(net, None, data.train, settings, checkpoint=checkpoint, progress=progress_for(), label="dense")
    save_file(net.state_dict(), path)
    checkpoint.unlink(missing_ok=True)
    return net.eval()


def sparse(graph: Graph, settings: SparseSettings, data: Data) -> dict[str, Any]:
    """One-shot unstructured zeros: their share by part of the net, and accuracy before and after batch norm."""
    layers = choose_layers(graph, settings)
    student = copy.deepcopy(graph.module)
    regime = OneShotMasks([layer.weight for layer in layers], make_pattern("unstructured"), settings)
    regime.begin(student, 0)
    regime.finish(student)
    zeros: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for layer in layers:
        mask, where = regime.masks[layer.weight], part(layer)
        zeros[where] = zeros.get(where, 0) + int((~mask).sum())
        sizes[where] = sizes.get(where, 0) + mask.numel()
    before = top1_percent(student, data.val)
    epoch = data.train.epoch(batch_size=64, seed=0, shuffle=True, augment=True)
    reestimate_batchnorm(student, epoch, max_batches=_STATISTICS_BATCHES)
    return {
        "sparsity": settings.sparsity,
        "by_part": {where: zeros[where] / sizes[where] for where in sizes},
        "weights": sizes,
        "percent_before": before,
        "percent_after": top1_percent(student, data.val),
    }


def settings_of() -> Iterator[tuple[str, SparseSettings]]:
    """Everything under one threshold, then the SE layers alone."""
    for share in GLOBAL:
        yield f"all {share:.1%}", SparseSettings(sparsity=share, layers=tuple(KINDS))
    for share in ONLY_SE:
        yield f"SE only {share:.1%}", SparseSettings(sparsity=share, only=("*.se",))


def table(found: dict[str, Any]) -> str:
    """Markdown: a line per sparsity, the share of zeros of each part."""
    parts = sorted({where for row in found["runs"].values() for where in row["by_part"]})
    lines = [
        f"| zeros | {' | '.join(parts)} | accuracy | after batch norm |",
        f"|---|{'--:|' * (len(parts) + 2)}",
    ]
    for name, row in found["runs"].items():
        shares = [f"{row['by_part'][where]:.1%}" if where in row["by_part"] else "" for where in parts]
        lines.append(f"| {name} | {' | '.join(shares)} | {row['percent_before']:.2f} | {row['percent_after']:.2f} |")
    return f"dense: {found['dense_percent']:.2f} %\n\n" + "\n".join(lines)


@click.command()
@click.option("--width", default=1.0, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--train-limit", type=int, help="train on so many images only")
@click.option("--test-limit", type=int, help="judge on so many images only")
@click.option("--threads", default=1, show_default=True)
def main(width: float, epochs: int, train_limit: int | None, test_limit: int | None, threads: int) -> None:
    """Train the dense net, unless it is there, and print the table."""
    torch.set_num_threads(threads)
    name = f"squeeze_excite_width{width:g}_epochs{epochs}_train-{train_limit or 'full'}"
    data = cifar10(train_limit, test_limit)
    net = trained(width, data, epochs=epochs, name=name)
    graph = trace(net, (torch.zeros(2, 3, 32, 32),))
    found: dict[str, Any] = {"dense_percent": top1_percent(net, data.val), "test_limit": test_limit, "runs": {}}
    for key, settings in settings_of():
        found["runs"][key] = sparse(graph, settings, data)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    click.echo(table(found))


if __name__ == "__main__":
    main()
