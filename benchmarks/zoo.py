"""Every architecture of the list at half its MACs, torch-pruning beside it: one table.

    python -m benchmarks.zoo                          # what is missing in results/zoo.json, then the table
    python -m benchmarks.zoo timm:rexnet_100 own:yolo # these; measured again if they are there
    python -m benchmarks.zoo --markdown               # only print the table of what is there

Each model and tool runs in a process of its own under a limit of CPU time and one of memory, one at a time.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from benchmarks.zoo_models import ALL
from benchmarks.zoo_table import table

RESULTS = Path(__file__).parent / "results" / "zoo.json"
# On a busy machine, a process waits longer than it works.
_PATIENCE = 12
TOOLS = ("deploypruner", "torch-pruning")


@click.command()
@click.argument("models", nargs=-1)
@click.option("--limit", default=150, show_default=True, help="CPU seconds per model and tool")
@click.option("--memory", default=12.0, show_default=True, help="GiB of address space per process")
@click.option("--tool", type=click.Choice(TOOLS), help="only this one")
@click.option("--markdown", is_flag=True, help="print the table of what was measured, run nothing")
def main(models: tuple[str, ...], limit: int, memory: float, tool: str | None, markdown: bool) -> None:
    """Measure MODELS (all that are missing when none is named) and print the table."""
    rows = _read()
    for name in () if markdown else models or ALL:
        for each in (tool,) if tool else TOOLS:
            if models or each not in rows.get(name, {}):
                row = measure(name, each, limit=limit, memory=memory)
                click.echo(f"{name} {each}: {row.get('failed') or 'ok'}, {row['process_s']:.0f} s", err=True)
                rows = _keep(name, each, row)
    click.echo(table({name: rows[name] for name in (models or [*ALL, *rows]) if name in rows}))


def _read() -> dict[str, dict[str, Any]]:
    """Model -> tool -> row, of all that was ever measured."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def _keep(name: str, tool: str, row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Put one row into the file as it is now, which another run may have added to."""
    rows = _read()
    rows.setdefault(name, {})[tool] = row
    RESULTS.parent.mkdir(exist_ok=True)
    part = RESULTS.with_suffix(f".{os.getpid()}.tmp")
    part.write_text(json.dumps(rows, indent=1))
    part.replace(RESULTS)
    return rows


def measure(name: str, tool: str, *, limit: int, memory: float) -> dict[str, Any]:
    """One row, whatever happens to the process that measures it."""
    command = [sys.executable, "-m", "benchmarks.zoo_worker", name, tool]
    begun = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_PATIENCE * limit,
            check=False,
            preexec_fn=partial(_limit, limit, int(memory * 2**30)),
        )
        row = {"failed": f"stopped after {limit} s"} if done.returncode == -signal.SIGXCPU else _row(done)
    except subprocess.TimeoutExpired:
        row = {"failed": f"stopped: no end after {_PATIENCE * limit} s of waiting"}
    return {**row, "process_s": time.perf_counter() - begun}


def _row(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    if done.returncode == 0:
        row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return row
    last = (done.stderr.strip().splitlines() or [""])[-1]
    return {"failed": f"exit code {done.returncode}: {last[:300]}"}


def _limit(seconds: int, size: int) -> None:
    """In the new process: at most so many CPU seconds and bytes of address space."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (size, size))


if __name__ == "__main__":
    main()
