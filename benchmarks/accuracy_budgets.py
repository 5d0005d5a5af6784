"""Requests with a budget of accuracy: met, or refused rightly; which bound was active; how long each took.

    nice python -m benchmarks.accuracy_budgets run
    nice python -m benchmarks.accuracy_budgets run --net resnet20 --drop 2
    python -m benchmarks.accuracy_budgets table

Each network is asked for the same speed-up with three budgets of accuracy. What a build says of itself is checked
from its files alone: the dense fp32 file and the artifact that was promised are judged anew on the same validation
images by OpenVINO and a few lines here, and the exit code has to be 0 exactly where that loses no more than was asked
and the time is kept. What is there already is kept.

Twelve requests are to fit into an hour of one core (two and a half minutes for ResNet-20), so the search is a small
one: four plans at most, judged on 256 images, ten seconds for timing layers, no training. More is met with more.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import deploypruner as dp
from benchmarks.baseline import baseline, path_of
from benchmarks.cifar10 import WORK, cifar10
from benchmarks.kept import changing, read
from deploypruner.errors import BudgetError, VerificationError
from deploypruner.openvino_import import openvino_core
from deploypruner.recipe.reading import read_recipe
from deploypruner.sources.batches import Data
from deploypruner.target import detect

RESULTS = Path(__file__).parent / "results" / "accuracy_budgets.zen4.json"
FOLDER = WORK / "accuracy-budgets"
NETS = ("resnet20", "resnet32", "se_net", "resnet56")
DROPS = (0.5, 2.0, 8.0)


@click.group()
def main() -> None:
    """Run, table."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)


@main.command()
@click.option("--net", type=click.Choice(NETS), multiple=True, help="only these; all that are at hand by default")
@click.option("--drop", type=float, multiple=True, default=DROPS, show_default=True)
@click.option("--speedup", default=1.25, show_default=True)
@click.option(
    "--search-minutes", default=10.0, show_default=True, help="at most; on an idle core it takes one or two"
)
@click.option("--train-limit", default=1280, show_default=True, help="CIFAR-10 training images")
@click.option("--images", default=500, show_default=True, help="validation images that judge")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def run(
    net: Sequence[str],
    drop: Sequence[float],
    speedup: float,
    search_minutes: float,
    train_limit: int,
    images: int,
    results: Path,
) -> None:
    """Make the requests that have not been made yet."""
    asked = {
        "prune": {"speedup": speedup},
        "recover": {"epochs": 0, "reconstruct_samples": 128},
        "search": {"minutes": search_minutes, "plans": 4, "worth_samples": 64, "held_out": 256},
        "quantize": {"samples": 64},
        "measure": {
            "samples": images,
            "runtimes": ["openvino"],
            "precision": "int8",
            "seconds": 3.0,
            "table_seconds": 10.0,
        },
    }
    for name in net or [name for name in NETS if path_of(name).exists()]:
        for points in drop:
            key = f"{name} {points:g}"
            if key in read(results):
                continue
            found = _request(name, asked, points, limits=(train_limit, images))
            click.echo(f"{key}: {json.dumps(found)}", err=True)
            with changing(results) as rows:
                rows[key] = {**found, "asked": asked, "train": train_limit, "cpu": detect().processor}


def _request(name: str, asked: dict[str, Any], points: float, *, limits: tuple[int, int]) -> dict[str, Any]:
    """One build, and its files judged anew."""
    data = cifar10(*limits)
    folder = FOLDER / f"{name}-{points:g}"
    shutil.rmtree(folder, ignore_errors=True)
    recipe = read_recipe(None, {**asked, "measure": {**asked["measure"], "accuracy_drop": points}})
    begun, said = time.monotonic(), ""
    try:
        dp.compile(
            *(baseline(name), torch.zeros(2, 3, 32, 32)),
            data=data,
            out=folder,
            recipe=recipe,
            say=lambda line: click.echo(line, err=True),
        )
    except (BudgetError, VerificationError) as error:
        said = f"{error.message}; {error.hint}".replace(str(folder), folder.name)
    seconds = time.monotonic() - begun
    return {"seconds": round(seconds, 1), "said": said, **_judged(folder, data, points, refused=bool(said))}


def _judged(folder: Path, data: Data, points: float, *, refused: bool) -> dict[str, Any]:
    """What the files themselves lose, beside what the build says."""
    if not (folder / "report.json").exists():
        return {"met": False, "rightly": None, "active": None}
    report = json.loads((folder / "report.json").read_text())
    budget, quality = report["budget"], report["budget"]["quality"]
    dense = _top1(folder / "dense.fp32.onnx", data)
    precision = budget["setting"]["precision"]
    ours = _top1(folder / ("model.int8.xml" if precision == "int8" else "model.fp32.onnx"), data)
    kept = dense - ours <= points + 1e-9
    slow = budget["certified"] is None or budget["certified"] < budget["requested"]
    return {
        "met": not refused,
        "rightly": refused == (slow or not kept),
        "active": budget["bounds"]["active"],
        "bounds": {name: budget["bounds"][name] for name in ("budget", "accuracy")},
        "lost_again": round(dense - ours, 3),
        "lost": quality["lost"],
        "setting": budget["setting"],
        "speedup": budget["measured"],
        "points": len(report["points"]),
        "passes": 1 + any("searched twice" in text for text in report["warnings"]),
    }


def _top1(file: Path, data: Data) -> float:
    """Percent of the validation images; what is float in f32, as OpenVINO would choose bf16 where the CPU has it."""
    told = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(str(file), "CPU", told)
    right = total = 0
    for x, y in _batches(data):
        right += int((next(iter(compiled(x).values())).argmax(1) == y).sum())
        total += len(y)
    return 100 * right / total


def _batches(data: Data) -> Iterator[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    for inputs, labels in data.val.epoch(batch_size=16, seed=0, shuffle=False):
        yield inputs[0].numpy(), np.asarray(labels)


@main.command()
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)
def table(results: Path) -> None:
    """The requests that were made, as markdown."""
    click.echo(
        "| network, points allowed | outcome | rightly | active bound | speed-up | lost, judged anew | seconds |"
    )
    click.echo("|---|---|---|---|--:|--:|--:|")
    for key, row in read(results).items():
        outcome = "met" if row["met"] else "refused"
        speed = "-" if row.get("speedup") is None else f"{row['speedup']:.2f}x"
        lost = "-" if row.get("lost_again") is None else f"{row['lost_again']:.2f}"
        right = {True: "yes", False: "NO", None: "no files"}[row["rightly"]]
        cells = (key, outcome, right, str(row["active"]), speed, lost, f"{row['seconds']:.0f}")
        click.echo(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
