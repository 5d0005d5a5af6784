"""A frontier of four speed-ups in one command, beside four separate compiles of the same: wall time and CPU time.

    nice python -m benchmarks.frontier_cost run --name r18 --model torchvision:resnet18 --data photos -- --epochs 2
    python -m benchmarks.frontier_cost table        # what is in the results; runs nothing

What stands behind `--` goes to both commands. Each command is a process of its own with an empty cache, so that no
table of layers is there already; one that was finished is not run again. CPU seconds (of the process and all its
children) hardly depend on other programs, wall seconds do.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.cifar10 import WORK
from benchmarks.kept import changing, read
from deploypruner.measure import environment

RESULTS = Path(__file__).parent / "results" / "frontier_cost.json"
SPEEDUPS = (1.25, 1.5, 2.0, 3.0)
FRONTIER = "frontier"


def commands(name: str, given: Sequence[str]) -> Iterator[tuple[str, Path, list[str]]]:
    """Name of a run, its folder, and the command line."""
    folder = WORK / "frontier_cost" / name
    factors = ",".join(f"{factor:g}" for factor in SPEEDUPS)
    yield FRONTIER, folder / FRONTIER, ["frontier", *given, "--speedups", factors]
    for factor in SPEEDUPS:
        yield f"compile {factor:g}x", folder / f"compile-{factor:g}", ["compile", *given, "--speedup", f"{factor:g}"]


def timed(command: Sequence[str], out: Path) -> dict[str, float]:
    """Wall and CPU seconds of a command that has to end well, or in a refusal (exit 3)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as cache:
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "deploypruner", *command, "--out", str(out)],
            env={**os.environ, "DEPLOYPRUNER_CACHE": cache},
            check=False,
        )
        seconds = time.perf_counter() - begun
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise click.ClickException(f"`{' '.join(command)}` ended with {done.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "cpu_seconds": cpu, "exit_code": float(done.returncode)}


def points(out: Path) -> list[dict[str, Any]]:
    """Accuracy and speed-up of every build that a command left."""
    found = []
    for path in sorted(out.rglob("report.json")):
        report = json.loads(path.read_text())
        rows = [row for row in report["rows"] if row["name"].startswith("pruned")]
        found.append({"build": path.parent.name, "rows": rows})
    return found


def markdown(rows: Mapping[str, Any]) -> str:
    """A line per network: the frontier, the four compiles' sum, and the ratio."""
    lines = [
        "| network | frontier, wall | CPU | four compiles, wall | CPU | CPU of the frontier over theirs |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, one in rows.items():
        runs = one["runs"]
        parts = [run for key, run in runs.items() if key != FRONTIER]
        if len(parts) < len(SPEEDUPS) or FRONTIER not in runs:
            continue
        whole, sums = runs[FRONTIER], {key: sum(run[key] for run in parts) for key in ("seconds", "cpu_seconds")}
        cells = [whole["seconds"], whole["cpu_seconds"], sums["seconds"], sums["cpu_seconds"]]
        ratio = whole["cpu_seconds"] / sums["cpu_seconds"]
        lines.append(f"| {name} | {' | '.join(f'{cell:.0f} s' for cell in cells)} | {ratio:.2f} |")
    return "\n".join(lines)


@click.group()
def main() -> None:
    """Run, table."""


@main.command()
@click.option("--model", required=True)
@click.option("--weights", type=click.Path(exists=True))
@click.option("--data", required=True, help="as the command takes it")
@click.option("--name", required=True, help="what the table calls it")
@click.argument("options", nargs=-1)
def run(model: str, weights: str | None, data: str, name: str, options: tuple[str, ...]) -> None:
    """The frontier, then compile after compile; what is in the results is not run again."""
    given = [model, *(("--weights", weights) if weights else ()), "--data", data, *options]
    for key, out, command in commands(name, given):
        if key in read(RESULTS).get(name, {}).get("runs", {}):
            continue
        found = timed(command, out)
        with changing(RESULTS) as rows:
            one = rows.setdefault(name, {"environment": environment(), "options": list(options), "runs": {}})
            one["runs"][key] = {**found, "points": points(out)}
        click.echo(f"{name}, {key}: {found['seconds']:.0f} s, {found['cpu_seconds']:.0f} CPU s", err=True)
    click.echo(markdown(read(RESULTS)))


@main.command()
def table() -> None:
    """What there is."""
    click.echo(markdown(read(RESULTS)))


if __name__ == "__main__":
    main()
