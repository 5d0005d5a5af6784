"""Where global magnitude takes its zeros in a net with squeeze-excitation, and what sparse SE layers alone cost.

    nice python -m benchmarks.squeeze_excite --epochs 20
    python -m benchmarks.squeeze_excite --epochs 20 --time                    # then: milliseconds, on a quiet machine
    nice python -m benchmarks.squeeze_excite --train-limit 5000 --test-limit 1000 --epochs 4 --width 0.5    # a look

Ghosh et al. (arXiv:2301.04502) find that SE layers become far sparser than others and bear over 99 %. The net is a
small one in the manner of MobileNetV3, trained here on CIFAR-10; an interrupted training goes on where it stopped.
Ours: if so many zeros cost nothing, a gate is a constant. The last line has every gate replaced by its mean over
training images, multiplied into the layer after it, and SE layers gone.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.cifar10 import WORK, cifar10
from benchmarks.models import GatedBlock, SENet
from benchmarks.side_by_side import time_cells, time_networks, write_files
from deploypruner.graph import Graph, trace
from deploypruner.measure import environment
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
DENSE, FOLDED = "dense", "gates folded"
_STATISTICS_BATCHES, _GATE_BATCHES, _BATCH = 20, 64, 64
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


@dataclass(frozen=True)
class Gate:
    """One block's gate over training images.

    Args:
        mean: Of each channel, [C].
        deviation: Its standard deviation over images, mean of the channels.
    """

    mean: Tensor
    deviation: float


def gates(net: nn.Module, data: Data) -> dict[str, Gate]:
    """Name of a block -> its gate."""
    blocks = {name: block for name, block in net.named_modules() if isinstance(block, GatedBlock)}
    seen: dict[str, list[Tensor]] = {name: [] for name in blocks}
    hooks = [
        block.se.register_forward_pre_hook(
            lambda se, args, name=name: seen[name].append(se.gate(args[0])[:, :, 0, 0])
        )
        for name, block in blocks.items()
    ]
    with torch.no_grad():
        batches = data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True, augment=False)
        for inputs, _ in islice(batches, _GATE_BATCHES):
            net(*inputs)
    for hook in hooks:
        hook.remove()
    values = {name: torch.cat(found) for name, found in seen.items()}
    return {name: Gate(found.mean(0), float(found.std(0).mean())) for name, found in values.items()}


def folded(net: nn.Module, found: dict[str, Gate]) -> nn.Module:
    """A copy without SE: the layer after it has the mean gate in its weights."""
    net = copy.deepcopy(net)
    for name, gate in found.items():
        block = net.get_submodule(name)
        assert isinstance(block, GatedBlock)
        with torch.no_grad():
            block.project.weight.mul_(gate.mean.reshape(1, -1, 1, 1))
        block.set_submodule("se", nn.Identity())
    return net.eval()


def sparse(graph: Graph, settings: SparseSettings) -> tuple[nn.Module, dict[str, Any]]:
    """One-shot unstructured zeros, and their share by part of the net."""
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
    by_part = {where: zeros[where] / sizes[where] for where in sizes}
    return student, {"sparsity": settings.sparsity, "by_part": by_part, "weights": sizes}


def judged(student: nn.Module, data: Data) -> dict[str, float]:
    """Top-1 as it is, and with batch norm's statistics set anew, which stay."""
    before = top1_percent(student, data.val)
    epoch = data.train.epoch(batch_size=_BATCH, seed=0, shuffle=True, augment=True)
    reestimate_batchnorm(student, epoch, max_batches=_STATISTICS_BATCHES)
    return {"percent_before": before, "percent_after": top1_percent(student, data.val)}


def settings_of() -> Iterator[tuple[str, SparseSettings]]:
    """Everything under one threshold, then the SE layers alone."""
    for share in GLOBAL:
        yield f"all {share:.1%}", SparseSettings(sparsity=share, layers=tuple(KINDS))
    for share in ONLY_SE:
        yield f"SE only {share:.1%}", SparseSettings(sparsity=share, only=("*.se",))


def table(found: dict[str, Any]) -> str:
    """Markdown: a line per sparsity, the share of zeros of each part."""
    parts = sorted({where for row in found["runs"].values() for where in row["by_part"]})
    times = found.get("times", {}).get("rows", {})
    lines = [
        f"| zeros | {' | '.join(parts)} | accuracy | after batch norm | fp32 | int8 | int8, our kernels |",
        f"|---|{'--:|' * (len(parts) + 5)}",
        f"| dense |{' |' * len(parts)} {found['dense_percent']:.2f} | | {time_cells(times, DENSE)} |",
    ]
    for name, row in found["runs"].items():
        shares = [f"{row['by_part'][where]:.1%}" if where in row["by_part"] else "" for where in parts]
        percents = f"{row['percent_before']:.2f} | {row['percent_after']:.2f}"
        lines.append(f"| {name} | {' | '.join(shares)} | {percents} | {time_cells(times, name)} |")
    deviations = ", ".join(f"{name} {value:.3f}" for name, value in found["gate_deviation"].items())
    return "\n".join([*lines, "", f"standard deviation of a gate over images: {deviations}"])


@click.command()
@click.option("--width", default=1.0, show_default=True)
@click.option("--epochs", default=20, show_default=True)
@click.option("--train-limit", type=int, help="train on so many images only")
@click.option("--test-limit", type=int, help="judge on so many images only")
@click.option("--threads", default=1, show_default=True)
@click.option("--time", "timed", is_flag=True, help="also milliseconds in OpenVINO; wants a quiet machine")
@click.option("--seconds", default=20.0, show_default=True, help="of timing")
def main(
    width: float,
    epochs: int,
    train_limit: int | None,
    test_limit: int | None,
    threads: int,
    timed: bool,
    seconds: float,
) -> None:
    """Train the dense net, unless it is there, and print the table."""
    torch.set_num_threads(threads)
    name = f"squeeze_excite_width{width:g}_epochs{epochs}_train-{train_limit or 'full'}"
    data = cifar10(train_limit, test_limit)
    net = trained(width, data, epochs=epochs, name=name)
    graph = trace(net, (torch.zeros(2, 3, 32, 32),))
    constant = gates(net, data)
    found: dict[str, Any] = {
        "dense_percent": top1_percent(net, data.val),
        "test_limit": test_limit,
        "gate_deviation": {block: gate.deviation for block, gate in constant.items()},
        "runs": {},
    }
    modules = {DENSE: net}
    for key, settings in settings_of():
        modules[key], row = sparse(graph, settings)
        found["runs"][key] = {**row, **judged(modules[key], data)}
    modules[FOLDED] = folded(net, constant)
    found["runs"][FOLDED] = {"by_part": {}, **judged(modules[FOLDED], data)}
    if timed:
        found["times"] = {"environment": environment(), "rows": times_of(modules, data, WORK / name, seconds)}
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
    click.echo(table(found))


def times_of(modules: dict[str, nn.Module], data: Data, folder: Path, seconds: float) -> dict[str, Any]:
    """Milliseconds of the dense net, of those whose SE layers alone are sparse, and of the one without."""
    folders = {}
    for key, module in modules.items():
        if not key.startswith("all "):
            folders[key] = folder / key.replace(" ", "-")
            folders[key].mkdir(parents=True, exist_ok=True)
            write_files(module, data.train, folders[key], sparse=key not in (DENSE, FOLDED))
    return time_networks(folders, logs=folder / "logs", seconds=seconds)


if __name__ == "__main__":
    main()
