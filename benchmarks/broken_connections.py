"""A whole `compile --speedup 1.5` on a machine over ssh, undisturbed and with all that may go wrong on the way.

    python -m benchmarks.broken_connections run --only undisturbed   # also: cuts, faults
    python -m benchmarks.broken_connections table

An sshd of its own is started on the loopback address. `cuts` ends every connection at ten random moments of
one build. `faults` takes one build through an agent that is killed (it goes on), a host key that changes in the midst
of it, a wrong user, a missing runtime and a disk that fills up, each of which ends it, and `--resume` to its end.
After each step: what the user saw, which stages were finished, which processes were left there. The network has one
group of channels that can become smaller, by half or not at all, so that noise does not choose the plan and plans can
be compared.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import nn

from deploypruner.measure import environment
from tests.builds import samples, save_program
from tests.sshd import WHY_NOT, Sshd, none_left, remember, running_sshd

RESULTS = Path(__file__).parent / "results" / "broken_connections.zen4.json"
PARTS = ("undisturbed", "cuts", "faults")
_IMAGE = (3, 32, 32)
_CUTS = 10
_SMALL_DISK = "300k"
_OPTIONS = ("--speedup", "1.5", "--epochs", "1", "--seconds", "5", "--runtime", "openvino", "--step", "64")
# The samples are noise: only the times mean something.
_ANY_QUALITY = ("--accuracy-drop", "100", "--allow-chance")


def network() -> nn.Module:
    """Three convolutions; with steps of 64 channels only the second one can become smaller."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(16, 128, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(128, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()


@dataclass
class Step:
    """One call of the command, and what became of it.

    Args:
        name: What was done to it.
        code: Exit code.
        seconds: It took.
        said: Lines about the connection, and the last error with its hint.
        finished: Stages that are finished behind it.
        left: Processes of ours there, 20 seconds later.
    """

    name: str
    code: int = 0
    seconds: float = 0.0
    said: list[str] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    left: int = 0


class Bench:
    """A folder with the model, and the server that stands for the device.

    Args:
        folder: For everything.
        server: Running.
    """

    def __init__(self, folder: Path, server: Sshd) -> None:
        self.folder, self.server = folder, server
        save_program(network(), folder / "net.pt2", torch.zeros(2, *_IMAGE))
        (x, y), (x_val, y_val) = (samples(count, seed, _IMAGE) for count, seed in ((256, 0), (64, 1)))
        np.savez(folder / "data.npz", x=x, y=y, x_val=x_val, y_val=y_val)

    def compile(
        self, name: str, out: str, *more: str, during: Sequence[tuple[float, Callable[[], None]]] = ()
    ) -> Step:
        """Run the command, and something so many seconds after its search began.

        Args:
            name: Of the step.
            out: Folder of the build.
            more: Options.
            during: Seconds, and what is done then.
        """
        command = [sys.executable, "-m", "deploypruner", "compile", "net.pt2", "--data", "data.npz", "--target", "pi"]
        log, begin = self.folder / f"{out}.log", time.monotonic()
        with log.open("w") as file:
            process = subprocess.Popen(
                [*command, *_OPTIONS, *_ANY_QUALITY, "--out", out, *more], cwd=self.folder, stderr=file, stdout=file
            )
        disturbing = threading.Thread(target=self._disturb, args=(process, during), daemon=True)
        disturbing.start()
        code = process.wait()
        disturbing.join()
        lines = log.read_text().splitlines()
        marks = self.folder / out / "stages" / "finished.json"
        finished = list(json.loads(marks.read_text())["stages"]) if marks.is_file() else []
        none_left(self.server)
        return Step(
            name, code, time.monotonic() - begin, _about_connection(lines), finished, len(self.server.agents())
        )

    def plan(self, out: str) -> dict[str, int]:
        """Group -> channels that stay."""
        path = self.folder / out / "plan.json"
        if not path.is_file():
            return {}
        return {group["id"]: len(group["keep"]) for group in json.loads(path.read_text())["groups"]}

    def sent(self) -> dict[str, int]:
        """Files and bytes that are kept there."""
        files = [path for path in self.server.device.rglob("*") if path.is_file()]
        return {"files": len(files), "bytes": sum(path.stat().st_size for path in files)}

    def kill_agent(self) -> None:
        """As the system does where memory is short."""
        for pid in self.server.agents()[:1]:
            os.kill(pid, signal.SIGKILL)

    def _disturb(self, process: subprocess.Popen[bytes], during: Sequence[tuple[float, Callable[[], None]]]) -> None:
        while not self.server.agents() and process.poll() is None:
            time.sleep(0.1)
        begin = time.monotonic()
        for after, act in during:
            while time.monotonic() - begin < after and process.poll() is None:
                time.sleep(0.05)
            if process.poll() is None:
                act()


def _about_connection(lines: Sequence[str]) -> list[str]:
    """Lines that a user reads about the device, and the error with its hint."""
    marks = ("trying again", "is back after", "error: ", "hint: ", "there is nothing to resume")
    return [line.strip() for line in lines if any(mark in line for mark in marks)]


def undisturbed(bench: Bench) -> dict[str, Any]:
    """A build that nothing happens to, and the first look at the machine from a second one."""
    step = bench.compile("undisturbed", "whole")
    kept = bench.sent()
    again = bench.compile("again, with the tables of layers that the first one kept", "again")
    return {
        "steps": [vars(step), vars(again)],
        "plan": bench.plan("whole"),
        "plan_again": bench.plan("again"),
        "kept": kept,
    }


def cuts(bench: Bench) -> dict[str, Any]:
    """A build whose connection is cut at ten random moments."""
    whole = bench.compile("undisturbed", "whole")
    rng = np.random.default_rng(0)
    moments = sorted(rng.uniform(0.0, 0.95 * whole.seconds, _CUTS).tolist())
    step = bench.compile("ten cuts", "cut", during=[(after, bench.server.cut) for after in moments])
    steps = [vars(whole), vars(step)]
    if step.code not in (0, 3):
        steps.append(vars(bench.compile("--resume", "cut", "--resume")))
    return {"moments_s": moments, "steps": steps, "plan": bench.plan("whole"), "plan_cut": bench.plan("cut")}


def faults(bench: Bench) -> dict[str, Any]:
    """One build through everything that ends it."""
    server, steps = bench.server, list[Step]()

    def change_key() -> None:
        remember(server.folder, server.port, "other")
        server.cut()

    during = [(4.0, bench.kill_agent), (14.0, change_key)]
    steps.append(bench.compile("agent killed, then another host key", "faulty", during=during))
    remember(server.folder, server.port, "host")
    server.targets(server.described(address=f"ssh://nobody-of-that-name@127.0.0.1:{server.port}"))
    steps.append(bench.compile("--resume with a wrong user", "faulty", "--resume"))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bench.folder / "bare"], check=True)
    packages = next((bench.folder / "bare").glob("lib/python*/site-packages"))
    for found in Path(np.__file__).parents[1].glob("numpy*"):
        (packages / found.name).symlink_to(found)
    server.targets(server.described(python=str(bench.folder / "bare" / "bin" / "python")))
    steps.append(bench.compile("--resume without a runtime there", "faulty", "--resume"))
    small = bench.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_DISK}", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        server.targets(server.described(folder=str(small / "kept")))
        steps.append(bench.compile(f"--resume onto a disk of {_SMALL_DISK}", "faulty", "--resume"))
        server.cut()
        none_left(server)
        subprocess.run(["umount", str(small)], check=True)
    server.targets(server.described())
    steps.append(bench.compile("--resume", "faulty", "--resume"))
    whole = bench.compile("undisturbed", "whole")
    return {
        "steps": [vars(step) for step in [*steps, whole]],
        "plan": bench.plan("whole"),
        "plan_faulty": bench.plan("faulty"),
    }


@click.group()
def main() -> None:
    """Builds on a machine behind a connection that breaks."""


@main.command()
@click.option("--only", type=click.Choice(PARTS), multiple=True, help="Part; repeatable.  [default: all]")
def run(only: tuple[str, ...]) -> None:
    """Build, break, resume; keep what happened."""
    if WHY_NOT:
        raise SystemExit(WHY_NOT)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for part in only or PARTS:
        with tempfile.TemporaryDirectory() as name:
            (Path(name) / "sshd").mkdir()
            with running_sshd(Path(name) / "sshd") as server:
                os.environ.update(server.environment)
                server.targets(server.described())
                known[part] = globals()[part](Bench(Path(name), server)) | {"environment": environment()}
        RESULTS.write_text(json.dumps(known, indent=1) + "\n")
    _show(known)


@main.command()
def table() -> None:
    """What is in the results; runs nothing."""
    _show(json.loads(RESULTS.read_text()))


def _show(known: dict[str, Any]) -> None:
    for part, found in known.items():
        print(f"\n{part}\n\n| step | exit code | seconds | stages finished | processes left there |")
        print("|---|--:|--:|--:|--:|")
        for step in found["steps"]:
            cells = (step["name"], step["code"], f"{step['seconds']:.0f}", len(step["finished"]), step["left"])
            print(f"| {' | '.join(map(str, cells))} |")
        plans = {name: plan for name, plan in found.items() if name.startswith("plan")}
        print("\n" + "\n".join(f"{name}: {' '.join(map(str, plan.values()))}" for name, plan in plans.items()))
        for step in found["steps"]:
            print("\n" + "\n".join([f"{step['name']}:", *(f"    {line}" for line in step["said"])]))


if __name__ == "__main__":
    main()
