"""The study of pruning spaces on CIFAR-10: sweeps of several costs, and what they say together.

    nice -n 15 python -m benchmarks.pruning_spaces run --net resnet20          # hours; goes on where it was stopped
    python -m benchmarks.pruning_spaces keep                                   # also while it runs: what is finished
    nice -n 15 python -m benchmarks.pruning_spaces repeat --net resnet20       # after it: refined or random
    python -m benchmarks.pruning_spaces table                                  # what is there; runs nothing

Trained for one epoch on 10,000 images and judged on 4,000 of the test images: the dense model knows all training
images by heart, and what is lost on them would be memory. Each sweep is a folder in `work/pruning-spaces`: a second
call goes on with it, also after a kill. `keep` (and the end of every sweep) writes every trial that is planned or
finished, and what was found, to the results; beside them lies the dense model in half precision.

`repeat` searches anew with seeds of its own: 16 recipes to learn from, 24 looks, 4 finalists. What the best of those
and of the finalists loses stands beside the best of as many recipes of the population as its seconds pay for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from math import comb
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import deploypruner as dp
from benchmarks.baseline import baseline
from benchmarks.cifar10 import MEAN, STD, WORK, split
from benchmarks.kept import changing, read
from benchmarks.models import PUBLISHED
from deploypruner.progress import progress_for
from deploypruner.recipe.reading import overlay
from deploypruner.recipe.whole import Recipe
from deploypruner.sweep.folder import STORE
from deploypruner.sweep.status import sweep_status
from deploypruner.sweep.store import StoredTrial, read_store

FOLDER = WORK / "pruning-spaces"
RESULTS = Path(__file__).parent / "results" / "pruning_spaces.json"
TRIALS = RESULTS.with_name("pruning_spaces_trials.json")
TRAIN, VAL = 10_000, 4_000
STEP, EPOCHS = 2, 1
REPEATED = RESULTS.with_name("pruning_spaces_repeated.json")
CANDIDATES = 48
# Recipes that a repeated search learns from, looks, and finalists.
LEARNT_FROM, LOOKS, FINALISTS = 16, 24, 4
REGIMES: dict[str, dict[str, float]] = {
    "macs-0.5": {"macs": 0.5},
    "macs-0.3": {"macs": 0.3},
    "speedup-1.25": {"speedup": 1.25},
    "macs-0.7": {"macs": 0.7},
    "macs-0.2": {"macs": 0.2},
}


@click.group()
def main() -> None:
    """Run, keep, table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option(
    "--regime", "regimes", type=click.Choice(list(REGIMES)), multiple=True, default=("macs-0.5", "macs-0.3")
)
@click.option("--samples", default=64, show_default=True)
@click.option("--candidates", default=CANDIDATES, show_default=True)
@click.option("--workers", default=1, show_default=True)
def run(net: str, regimes: tuple[str, ...], samples: int, candidates: int, workers: int) -> None:
    """Sweep after sweep; each also says what it teaches together with those that are finished."""
    for regime in regimes:
        done = [path for path in sorted(FOLDER.glob(f"{net}-*")) if (path / "sweep.json").is_file()]
        beside = [path for path in done if path.name != f"{net}-{regime}"]
        settings = {"samples": samples, "candidates": candidates, "workers": workers, "beside": beside}
        found = _sweep(net, regime, FOLDER / f"{net}-{regime}", **settings)
        click.echo(f"{net}, {regime}: {found!r}")
        keep_all()


@main.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option("--regime", type=click.Choice(list(REGIMES)), default="macs-0.5", show_default=True)
@click.option("--repeats", default=3, show_default=True)
def repeat(net: str, regime: str, repeats: int) -> None:
    """Searches with seeds of their own; what is finished is not searched again."""
    counts = {"samples": LEARNT_FROM, "candidates": LOOKS, "finalists": FINALISTS, "again": 1}
    for seed in range(1, 1 + repeats):  # the population's is 0
        out = FOLDER / "repeated" / f"{net}-{regime}-seed-{seed}"
        found = _sweep(net, regime, out, seed=seed, **counts).found
        again = [drop for one in found.winners if one.phase == "refined" for drop in one.again]
        with changing(REPEATED) as rows:
            rows[out.name] = {**_repeated(f"{net}-{regime}", out / STORE), "again": again}
        click.echo(json.dumps(read(REPEATED)[out.name]))


def _repeated(population: str, part: Path) -> dict[str, Any]:
    """One search beside random search among the kept trials of a population, that takes as long."""
    results = [
        one["result"]
        for one in json.loads(TRIALS.read_text())[population]["trials"]
        if one["trial"]["phase"] == "space"
    ]
    every = sorted(one["drop"] for one in results)
    rows = read_store(part)[1]
    learnt, looks, finals = (
        [one for one in rows if one.trial.phase == phase] for phase in ("space", "look", "refined")
    )
    spent = sum(_seconds(phase) for phase in (learnt, looks, finals))
    count = affordable(spent, _as_median([one["seconds"] for one in results]), len(every))
    return {
        "learnt from": min(_drops(learnt)),
        "finalists": _drops(finals),
        "minutes": spent / 60,
        "as many": count,
        "at random": best_expected(every, count),
        "as good at random": share_as_good(every, count, min(_drops([*learnt, *finals]))),
    }


def _seconds(trials: Sequence[StoredTrial]) -> float:
    return _as_median([one.result.seconds for one in trials if one.result is not None])


def _as_median(seconds: Sequence[float]) -> float:
    """Sum of one phase's seconds, as if each trial took the median: one that was paused counts as the others."""
    return len(seconds) * float(np.median(seconds))


def _drops(trials: Sequence[StoredTrial]) -> list[float]:
    return sorted(one.kept.drop for one in trials if one.kept is not None)


def _sweep(net: str, regime: str, out: Path, **settings: Any) -> dp.SweepResult:
    with progress_for() as console:
        return dp.sweep(
            *(dense(net), torch.zeros(2, 3, 32, 32)),
            data=str(_data()),
            recipe=_recipe(),
            out=out,
            resume=(out / STORE).is_file(),
            progress=console,
            say=console.say,
            macs=REGIMES[regime].get("macs"),
            speedup=REGIMES[regime].get("speedup"),
            **settings,
        )


@main.command()
def keep() -> None:
    """Copy trials and findings to the results, also while a sweep runs."""
    keep_all()
    for name, one in json.loads(TRIALS.read_text()).items():
        finished = sum(trial["result"] is not None for trial in one["trials"])
        click.echo(f"{name}: {finished} of {len(one['trials'])} trials finished")


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
    heads = "best of these | best finalist | with a new seed | as many at random | as good at random, %"
    click.echo(f"\n| refined after {LEARNT_FROM} recipes | {heads} |")
    click.echo("|---|--:|--:|--:|--:|--:|")
    for name, one in read(REPEATED).items():
        first, again = f"{one['learnt from']:.2f} | {one['finalists'][0]:.2f}", f"{one['again'][0]:.2f}"
        values = f"{first} | {again} | {one['as many']}: {one['at random']:.2f}"
        click.echo(f"| {name} | {values} | {100 * one['as good at random']:.0f} |")
    for folder in sorted(FOLDER.glob("*-*")):
        if (folder / "sweep.sqlite").is_file() and not (folder / "sweep.json").is_file():
            click.echo(sweep_status(folder).text)


def dense(net: str) -> nn.Module:
    """The study's dense model, the same on every machine: the baseline in half precision, beside the results."""
    path = RESULTS.parent / f"pruning_spaces_{net}.safetensors"
    if not path.exists():
        save_file(
            {name: t.half() if t.is_floating_point() else t for name, t in baseline(net).state_dict().items()}, path
        )
    model = PUBLISHED[net]()
    model.load_state_dict(load_file(path))
    return model.eval()


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
    seconds = seconds_by_phase(name)
    if seconds.get("space") and seconds.get("refined"):
        every = sorted(drop for bucket in found["buckets"] for drop in bucket["drops"])
        spent = sum(seconds["look"]) + sum(seconds["refined"])
        count = affordable(spent, sum(seconds["space"]), len(every))
        took = ", ".join(f"{phase} {sum(taken) / 60:.0f}" for phase, taken in seconds.items())
        best = best_expected(every, count)
        lines.append(f"  minutes: {took}")
        lines.append(f"  best of {count} at random, which take as long as looks and finalists: {best:.2f}")
    return lines


def seconds_by_phase(name: str) -> dict[str, list[float]]:
    """Phase -> seconds of its finished trials, of a sweep whose trials are kept."""
    kept = json.loads(TRIALS.read_text()).get(name, {"trials": []}) if TRIALS.exists() else {"trials": []}
    found: dict[str, list[float]] = {}
    for one in kept["trials"]:
        if one["result"] is not None:
            found.setdefault(one["trial"]["phase"], []).append(one["result"]["seconds"])
    return found


def affordable(spent: float, seconds: float, total: int) -> int:
    """How many of a population's recipes take as long, where all of them took `seconds`."""
    return min(total, round(spent * total / seconds))


def best_expected(drops: Sequence[float], count: int) -> float:
    """Mean of the least of `count` that are taken at random, without putting back, from drops in ascending order."""
    total = len(drops)
    ways = [comb(total - 1 - place, count - 1) for place in range(total)]
    return sum(drop * way for drop, way in zip(drops, ways, strict=True)) / comb(total, count)


def share_as_good(drops: Sequence[float], count: int, drop: float) -> float:
    """How often the least of `count` taken at random, without putting back, is no more than `drop`."""
    worse = sum(one > drop for one in drops)
    return 1 - comb(worse, count) / comb(len(drops), count)


def keep_all() -> None:
    """Copy trials, and what the finished sweeps found, to the results, without what only the folders need."""
    trials = json.loads(TRIALS.read_text()) if TRIALS.exists() else {}
    for path in sorted(FOLDER.glob(f"*-*/{STORE}")):
        about, rows = read_store(path)
        kept = [
            {
                "id": row.id,
                "predicted_ms": row.predicted_ms,
                "trial": asdict(row.trial),
                "result": None if row.result is None else asdict(row.result),
            }
            for row in rows
        ]
        trials[path.parent.name] = {"about": about, "trials": kept}
    TRIALS.write_text(json.dumps(trials) + "\n")
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for path in sorted(FOLDER.glob("*-*/sweep.json")):
        document = json.loads(path.read_text())
        found[path.parent.name] = {name: value for name, value in document.items() if name != "command"}
    if found:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
