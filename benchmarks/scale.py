"""Does the time grow with the size of the graph, or faster? Seconds and memory per step, for deeper and deeper nets.

    python -m benchmarks.scale                  # all families
    python -m benchmarks.scale resnet --limit 300

Each network runs in a process of its own; seconds are CPU seconds of one thread. The last line of a family is the
exponent of each step: the slope of log(seconds) over log(graph nodes); 1 is linear.
"""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.sources.torchvision_ops import import_torchvision

RESULTS = Path(__file__).parent / "results" / "scale.json"
STEPS = ("export", "groups", "plan", "remove", "proof")
SIZES: dict[str, tuple[str, ...]] = {
    "resnet": ("50", "100", "250", "500", "1000"),
    "decoder": ("6", "12", "24"),
    "vit": ("tiny", "small", "base", "large"),
}


class Block(nn.Module):
    """Two 3x3 convolutions around an identity shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 3, padding=1)
        self.n, self.m = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.m(self.b(F.relu(self.n(self.a(x))))))


def resnet(layers: str) -> tuple[nn.Module, Any]:
    blocks = [Block(16) for _ in range((int(layers) - 2) // 2)]
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(net, nn.Linear(16, 10)), (torch.randn(2, 3, 8, 8),)


def decoder(layers: str) -> tuple[nn.Module, Any]:
    import_torchvision()
    import transformers

    config = transformers.GPT2Config(n_embd=128, n_layer=int(layers), n_head=4, vocab_size=200, use_cache=False)
    return transformers.GPT2Model(config), {"input_ids": torch.randint(200, (2, 16))}


def vit(size: str) -> tuple[nn.Module, Any]:
    import_torchvision()
    import timm

    return timm.create_model(f"vit_{size}_patch16_224"), (torch.randn(2, 3, 224, 224),)


FAMILIES: dict[str, Callable[[str], tuple[nn.Module, Any]]] = {"resnet": resnet, "decoder": decoder, "vit": vit}


def worker(family: str, size: str) -> dict[str, float]:
    """Seconds per step and peak memory of one network."""
    from unittest import mock

    from benchmarks.lively import liven
    from deploypruner import plan as make_plan
    from deploypruner.channels.remove import remove_and_prove
    from deploypruner.graph import trace
    from deploypruner.recipe.budget import Budget

    torch.set_num_threads(1)
    model, inputs = FAMILIES[family](size)
    liven(model.eval())
    loaded, export = _peak(), torch.export.export
    seconds: dict[str, float] = {"export": 0.0}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        try:
            return work()
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.process_time() - begun

    with mock.patch("torch.export.export", lambda *a, **k: timed("export", lambda: export(*a, **k))):
        graph = timed("groups", lambda: trace(model, inputs))
    seconds["groups"] -= seconds["export"]
    plan = timed("plan", lambda: make_plan(graph, budget=Budget(0.5), step=1))
    cut = graph.cut

    def timed_cut(removed: Any) -> nn.Module:
        result: nn.Module = timed("remove", lambda: cut(removed))
        return result

    object.__setattr__(graph, "cut", timed_cut)
    timed("proof", lambda: remove_and_prove(graph, plan))
    seconds["proof"] -= seconds["remove"]
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        **seconds,
        "nodes": len(graph.module.graph.nodes),
        "weights_mib": weights / 2**20,
        "grown_mib": (_peak() - loaded) / 2**20,
    }


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def exponent(rows: list[dict[str, float]], step: str) -> float:
    """Slope of log(seconds) over log(nodes), NaN for fewer than two networks."""
    points = [(math.log(row["nodes"]), math.log(row[step])) for row in rows if row[step] > 0]
    if len(points) < 2:
        return math.nan
    nodes, seconds = np.array(points).T
    return float(np.polyfit(nodes, seconds, 1)[0])


@click.command()
@click.argument("families", nargs=-1, type=click.Choice(list(FAMILIES)))
@click.option("--limit", default=300, show_default=True, help="seconds per network")
def main(families: tuple[str, ...], limit: int) -> None:
    """Measure FAMILIES (all when none is named), print a table and keep the numbers."""
    click.echo("| network | nodes | " + " | ".join(f"{step} s" for step in STEPS) + " | weights MiB | grown MiB |")
    click.echo("|---" * (len(STEPS) + 4) + "|")
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for family in families or FAMILIES:
        rows = []
        for size in SIZES[family]:
            row = measure(family, size, limit)
            known[f"{family} {size}"] = row
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(known, indent=1))
            if "failed" in row:
                click.echo(f"| {family} {size} | {row['failed']} |")
                continue
            rows.append(row)
            cells = [f"{row[step]:.2f}" for step in STEPS]
            tail = f"{row['weights_mib']:.0f} | {row['grown_mib']:.0f} |"
            click.echo(f"| {family} {size} | {row['nodes']} | {' | '.join(cells)} | {tail}")
        slopes = " | ".join(f"{exponent(rows, step):.2f}" for step in STEPS)
        click.echo(f"| {family}: exponent | | {slopes} | | |")


def measure(family: str, size: str, limit: int) -> dict[str, Any]:
    """One network in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale_worker", family, size]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {limit} s"}
    if done.returncode != 0:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


if __name__ == "__main__":
    main()
