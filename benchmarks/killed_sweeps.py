"""A sweep that is killed at ten random moments beside one that nobody disturbs, and where a driver's time goes.

    nice python -m benchmarks.killed_sweeps kills --workers 1    # driver or worker, at random; minutes
    nice python -m benchmarks.killed_sweeps kills --workers 2
    nice python -m benchmarks.killed_sweeps driver --trials 1000   # what the driver itself costs a trial
    python -m benchmarks.killed_sweeps table                     # what is in the results; runs nothing

The network and its images are small and made here. After every kill all results on disk are read; at the end each has
to be there unchanged, and recipes and results have to be those of the undisturbed sweep, but for the seconds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.kept import changing, read
from deploypruner.measure import environment
from deploypruner.sweep.folder import STORE, TRIALS
from deploypruner.sweep.store import TrialStore, read_store
from deploypruner.sweep.trial_record import SweepTrial, TrialResult, result_json
from deploypruner.sweep.workers import run_in_workers

RESULTS = Path(__file__).parent / "results" / "killed_sweeps.json"
KILLS = 10
_LONGEST_S = 900.0
_RESULT = TrialResult("accuracy", 90.0, 88.5, 1.5, 500, 50, 2.0)


def small_net() -> nn.Module:
    """Three convolutions for images of 3 x 16 x 16, seeded."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 24), (24, 16)):
        layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


@click.group()
def main() -> None:
    """Kills, driver, table."""


@main.command()
@click.option("--workers", default=1, show_default=True)
@click.option("--samples", default=12, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Decides when what is killed.")
def kills(workers: int, samples: int, seed: int) -> None:
    """Ten kills, and what they cost."""
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        _write_data(folder / "data.npz")
        _write_taught(folder)
        begun = time.monotonic()
        if _sweep(folder, "whole", workers, samples).wait(_LONGEST_S):
            raise click.ClickException("the undisturbed sweep failed")
        whole_s = time.monotonic() - begun
        moments = _killed(folder, workers, samples, chance, whole_s)
        ours, theirs = (_finished(folder / name) for name in ("killed", "whole"))
        same = [_decided(row) for row in _rows(folder / "killed")] == [
            _decided(row) for row in _rows(folder / "whole")
        ]
    found = {
        "environment": environment(),
        "workers": workers,
        "undisturbed_s": whole_s,
        "kills": moments,
        "trials": len(theirs),
        "different_drops": len({result["drop"] for result in theirs.values()}),
        "same_trials": same and ours == theirs,
    }
    with changing(RESULTS) as rows:
        rows[f"kills, {workers} workers"] = found
    lost = sum(len(moment["lost"]) for moment in moments)
    click.echo(f"{len(moments)} kills, {lost} finished trials lost; same as undisturbed: {found['same_trials']}")
    if lost or not found["same_trials"]:
        raise SystemExit(1)


def _killed(folder: Path, workers: int, samples: int, chance: random.Random, whole_s: float) -> list[dict[str, Any]]:
    """Run to the end in spite of kills; each with what was finished before it and is gone or changed after it."""
    moments: list[dict[str, Any]] = []
    before: dict[str, Any] = {}
    while True:
        process = _sweep(folder, "killed", workers, samples)
        if len(moments) == KILLS:
            if process.wait(_LONGEST_S):
                raise click.ClickException("the sweep that was killed did not go on")
            return moments
        who, after_s = chance.choice(("driver", "worker")), chance.uniform(0.1, 0.5) * whole_s
        killed = _kill(process, who, after_s)
        if killed == "worker":  # which the driver starts again; then it is gone itself, like a machine
            time.sleep(1)
            process.kill()
        process.wait()
        after = _finished(folder / "killed")
        lost = sorted(name for name, result in before.items() if after.get(name) != result)
        moments.append({"killed": killed, "after_s": after_s, "finished": len(after), "lost": lost})
        before = after
        click.echo(f"{killed} killed after {after_s:.1f} s: {len(after)} finished, {len(lost)} lost", err=True)


def _kill(process: subprocess.Popen[bytes], who: str, after_s: float) -> str:
    """End the driver or one of its workers; what was ended, the driver where it had no worker."""
    time.sleep(after_s)
    if who == "worker" and process.poll() is None:
        for child in psutil.Process(process.pid).children():
            os.kill(child.pid, signal.SIGKILL)
            return "worker"
    process.kill()
    return "driver"


def _sweep(folder: Path, name: str, workers: int, samples: int) -> subprocess.Popen[bytes]:
    words = ["sweep", "benchmarks.killed_sweeps:small_net", "--input-shape", "2,3,16,16", "--data", "data.npz"]
    words += ["--macs", "0.5", "--step", "1", "--samples", str(samples), "--candidates", "8", "--finalists", "2"]
    words += [
        "--again",
        "1",
        "--runtime",
        "onnxruntime",
        "--precision",
        "fp32",
        "--epochs",
        "1",
        "--weights",
        "net.safetensors",
    ]
    words += ["--mean", "0,0,0", "--std", "1,1,1"]
    words += ["--workers", str(workers), "--out", name, "-q"]
    words += ["--resume"] if (folder / name / STORE).is_file() else []
    surroundings = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", "deploypruner", *words], cwd=folder, env=surroundings)


def _write_data(path: Path) -> None:
    """Noise whose class is the colour that is brighter, or the fourth where none is."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for end, count in (("", 2048), ("_val", 512)):
        y = rng.integers(0, 4, count)
        x = rng.integers(0, 160, (count, 3, 16, 16)).astype(np.uint8)
        for image, label in zip(x, y, strict=True):
            image[label : label + 1] += 8
        arrays |= {f"x{end}": x, f"y{end}": y}
    np.savez(path, **arrays)


def _write_taught(folder: Path) -> None:
    """Weights that know the classes, so that trials differ in what they lose."""
    torch.set_num_threads(1)
    net = small_net().train()
    with np.load(folder / "data.npz") as arrays:
        x, y = (torch.tensor(arrays[name]) for name in ("x", "y"))
    x = x.float() / 255
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for epoch in range(6):
        for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    save_file(net.state_dict(), folder / "net.safetensors")


def _finished(folder: Path) -> dict[str, Any]:
    """Identity -> result of every trial on disk, but for its seconds."""
    found = {}
    for path in (folder / TRIALS).glob("*.json"):
        result = json.loads(path.read_text())["result"]
        found[path.stem] = {name: value for name, value in result.items() if name != "seconds"}
    return found


def _rows(folder: Path) -> list[Any]:
    return read_store(folder / STORE)[1]


def _decided(row: Any) -> tuple[Any, ...]:
    result = row.result
    return row.id, row.trial, None if result is None else (result.found, result.drop, result.macs, result.why)


@main.command()
@click.option("--trials", "count", default=1000, show_default=True)
@click.option("--workers", default=2, show_default=True)
def driver(count: int, workers: int) -> None:
    """What planning, starting and entering a trial that does nothing costs."""
    with tempfile.TemporaryDirectory() as root:
        store = TrialStore(Path(root) / STORE)
        trials = [SweepTrial("space", n, {f"g{i}": n % 64 for i in range(12)}, 0, 1, 0.1) for n in range(count)]
        begun = time.perf_counter()
        store.plan((f"{n:016x}", trial, 1.0) for n, trial in enumerate(trials))
        planned = time.perf_counter()
        jobs = [(f"{n:016x}", lambda trial=trial: result_json(trial, _RESULT)) for n, trial in enumerate(trials)]
        entering = 0.0
        for name, result in run_in_workers(jobs, Path(root) / TRIALS, workers=workers):
            at = time.perf_counter()
            store.finish(name, result)
            entering += time.perf_counter() - at
        ended = time.perf_counter()
        store.close()
    found = {
        "environment": environment(),
        "trials": count,
        "plan_ms": 1e3 * (planned - begun) / count,
        "start_ms": 1e3 * (ended - planned - entering) / count,
        "enter_ms": 1e3 * entering / count,
    }
    with changing(RESULTS) as rows:
        rows[f"driver, {workers} workers"] = found
    click.echo(json.dumps({name: value for name, value in found.items() if name.endswith("_ms")}))


@main.command()
def table() -> None:
    """What is in the results."""
    rows = read(RESULTS)
    click.echo("| sweep | kills of driver, worker | trials | finished and lost | same as undisturbed |")
    click.echo("|---|--:|--:|--:|---|")
    for name, row in rows.items():
        if "kills" in row:
            who = [moment["killed"] for moment in row["kills"]]
            lost = sum(len(moment["lost"]) for moment in row["kills"])
            counts = f"{who.count('driver')}, {who.count('worker')}"
            click.echo(f"| {name} | {counts} | {row['trials']} | {lost} | {'yes' if row['same_trials'] else 'NO'} |")
    for name, row in rows.items():
        if "plan_ms" in row:
            parts = ", ".join(f"{part} {row[f'{part}_ms']:.2f} ms" for part in ("plan", "start", "enter"))
            click.echo(f"\n{name}: a trial costs {parts}")


if __name__ == "__main__":
    main()
