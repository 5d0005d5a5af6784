"""Trials in processes of this machine, one process for each trial.

A process is forked, so that models, data and the user's functions need no serialisation; see `train.launch`, which
has the same limits. It computes on one thread, so that a trial gives the same bits however many run beside it. Its
result is a file that appears whole before the process ends: whoever is killed, what was finished is not lost.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import multiprocessing

from deploypruner.atomic import write_json
from deploypruner.errors import InputError
from deploypruner.sweep.trial_record import TrialResult, result_of

# Starts of one trial: a process that something else ended may have been unlucky.
_STARTS = 2
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LOOK_S = 5.0

Job = Callable[[], dict[str, Any]]
"""Gives the document of a result."""


@dataclass
class _Running:
    name: str
    process: Any
    starts: int


def run_in_workers(
    jobs: Sequence[tuple[str, Job]], folder: Path, *, workers: int
) -> Iterator[tuple[str, TrialResult]]:
    """Run jobs that are not finished, and give the result of every one as it is there.

    Args:
        jobs: Identity of the trial, and what gives its document.
        folder: Where results are: ID.json.
        workers: Processes at a time.

    Yields:
        Identity and result; of a process that was ended twice the reason.

    Raises:
        InputError: This platform cannot fork; or a result cannot be written.
    """
    if "fork" not in multiprocessing.get_all_start_methods():
        raise InputError("this platform cannot fork worker processes", hint="run the sweep on Linux")
    folder.mkdir(parents=True, exist_ok=True)
    waiting, running = [(name, job, 1) for name, job in jobs], list[tuple[_Running, Job]]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name, job, starts = waiting.pop(0)
                known = read_result(folder, name)
                if known is not None:
                    yield name, known
                else:
                    running.append((_started(name, job, folder, starts), job))
            if not running:
                continue
            wait([one.process.sentinel for one, _ in running], timeout=_LOOK_S)
            ended = [pair for pair in running if pair[0].process.exitcode is not None]
            running = [pair for pair in running if pair not in ended]
            for one, job in ended:
                one.process.join()
                found = read_result(folder, one.name)
                if found is not None:
                    yield one.name, found
                elif one.starts < _STARTS:
                    waiting.insert(0, (one.name, job, one.starts + 1))
                else:
                    yield one.name, TrialResult.failed(_ended(one.process.exitcode))
    finally:
        for one, _ in running:
            one.process.kill()
            one.process.join()


def read_result(folder: Path, name: str) -> TrialResult | None:
    """The result of a finished trial, None where there is none, or none that this version reads."""
    try:
        return result_of(json.loads((folder / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _started(name: str, job: Job, folder: Path, starts: int) -> _Running:
    sys.stdout.flush()
    sys.stderr.flush()
    process = multiprocessing.get_context("fork").Process(
        target=_work, args=(job, folder / f"{name}.json", os.getpid()), name=f"trial-{name}", daemon=True
    )
    process.start()
    return _Running(name, process, starts)


def _work(job: Job, file: Path, parent: int) -> None:
    """What one process does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides, and ends this process
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with(parent)
    torch.set_num_threads(1)
    write_json(file, job())


def _end_with(parent: int) -> None:
    """Have the system end this process with its parent, where it can: nobody would enter its result."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        memory = "; was it out of memory? fewer --workers need less" if name == "SIGKILL" else ""
        return f"its process was ended by {name} twice{memory}"
    return f"its process ended with code {code} twice"
