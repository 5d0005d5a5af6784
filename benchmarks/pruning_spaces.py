"""The study of pruning spaces on CIFAR-10: sweeps of several costs, and what they say together.

    nice -n 15 python -m benchmarks.pruning_spaces run --net resnet20          # hours; goes on where it was stopped
    python -m benchmarks.pruning_spaces table                                  # what is there; runs nothing

Trained for one epoch on 10,000 images and judged on 4,000 of the test images: the dense model knows all training
images by heart, and what is lost on them would be memory. Each sweep is a folder in `work/pruning-spaces`: a second
call goes on with it, also after a kill.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import deploypruner as dp
from benchmarks.baseline import baseline
from benchmarks.cifar10 import MEAN, STD, WORK, split
from benchmarks.models import PUBLISHED
from deploypruner.progress import progress_for
from deploypruner.recipe.reading import overlay
from deploypruner.recipe.whole import Recipe
from deploypruner.sweep.status import sweep_status

FOLDER = WORK / "pruning-spaces"
RESULTS = Path(__file__).parent / "results" / "pruning_spaces.json"
TRAIN, VAL = 10_000, 4_000
STEP, EPOCHS = 2, 1
REGIMES: dict[str, dict[str, float]] = {
    "macs-0.5": {"macs": 0.5},
    "macs-0.3": {"macs": 0.3},
    "speedup-2": {"speedup": 2.0},
    "macs-0.7": {"macs": 0.7},
    "macs-0.2": {"macs": 0.2},
}


@click.group()
def main() -> None:
    """Run, table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option(
    "--regime", "regimes", type=click.Choice(list(REGIMES)), multiple=True, default=("macs-0.5", "macs-0.3")
)
@click.option("--samples", default=64, show_default=True)
@click.option("--candidates", default=48, show_default=True)
@click.option("--workers", default=1, show_default=True)
def run(net: str, regimes: tuple[str, ...], samples: int, candidates: int, workers: int) -> None:
    """Sweep after sweep; each also says what it teaches together with those that are finished."""
    for regime in regimes:
        done = [path for path in sorted(FOLDER.glob(f"{net}-*")) if (path / "sweep.json").is_file()]
        beside = [path for path in done if path.name != f"{net}-{regime}"]
        with progress_for() as console:
            found = dp.sweep(
                *(baseline(net), torch.zeros(2, 3, 32, 32)),
                data=str(_data()),
                recipe=_recipe(),
                out=FOLDER / f"{net}-{regime}",
                samples=samples,
                candidates=candidates,
                workers=workers,
                beside=beside,
                resume=(FOLDER / f"{net}-{regime}" / "sweep.sqlite").is_file(),
                progress=console,
                say=console.say,
                macs=REGIMES[regime].get("macs"),
                speedup=REGIMES[regime].get("speedup"),
            )
        click.echo(f"{net}, {regime}: {found!r}")
    _keep()


@main.command()
def table() -> None:
    """What the sweeps that are finished found, and how far the others are."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    click.echo("| sweep | dense, % | std of ratios | recipes | best lost | median | worst |")
    click.echo("|---|--:|---|--:|--:|--:|--:|")
    for name, one in found.items():
        for bucket in one["buckets"]:
            drops = bucket["drops"]
            values = " | ".join(f"{value:.2f}" for value in (drops[0], np.median(drops), drops[-1]))
            spread = f"{bucket['low']:g} to {bucket['high']:g}"
            click.echo(f"| {name} | {one['dense_quality']:.2f} | {spread} | {len(drops)} | {values} |")
    for name, one in found.items():
        click.echo("\n".join(["", *_lines(name, one)]))
    for folder in sorted(FOLDER.glob("*-*")):
        if (folder / "sweep.sqlite").is_file() and not (folder / "sweep.json").is_file():
            click.echo(sweep_status(folder).text)


def _recipe() -> Recipe:
    """What all sweeps have in common."""
    return overlay(
        Recipe(),
        {
            "data": {"settings": {"mean": MEAN, "std": STD}},
            "prune": {"step": STEP},
            "search": {"held_out": 256},
            "recover": {
                "epochs": EPOCHS,
                "reconstruct_samples": 128,
                "batchnorm_batches": 20,
                "settings": {"channels_last": True},
            },
            "measure": {"runtimes": ("openvino",), "precision": "int8"},
        },
    )


def _data() -> Path:
    """The images of the study in one file."""
    path = FOLDER / "cifar10-test.npz"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        (x, y), (x_val, y_val) = split("train"), split("test")
        rng = np.random.default_rng(0)
        train, val = (np.sort(rng.permutation(len(labels))[:n]) for labels, n in ((y, TRAIN), (y_val, VAL)))
        temporary = path.with_suffix(".tmp.npz")
        np.savez(temporary, x=x[train], y=y[train], x_val=x_val[val], y_val=y_val[val])
        temporary.replace(path)
    return path


def _lines(name: str, found: dict[str, Any]) -> list[str]:
    lines = [f"{name}:", *(f"  {c['number']} {c['verdict']}: {c['evidence']}" for c in found["conjectures"])]
    for winner in found["winners"]:
        again = ", ".join(f"{drop:.2f}" for drop in winner["again"])
        lines.append(f"  winner of {winner['phase']}: {winner['drop']:.2f}, with new seeds {again}")
    return lines


def _keep() -> None:
    """Copy what the finished sweeps found to the results, without what only the folders need."""
    found = {}
    for path in sorted(FOLDER.glob("*-*/sweep.json")):
        document = json.loads(path.read_text())
        found[path.parent.name] = {name: value for name, value in document.items() if name != "command"}
    if found:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
