"""A fuzzer of everything that reads what users give: mutated inputs, each in a process of its own, and how it ended.

    python -m tests.fuzzing --kinds recipe=300 report=300 --seed 7 --folder /tmp/fuzz

imports the package once and forks for every case, so that a case costs a fraction of a second, may not disturb the
next, and may crash or hang. The child is the real command line: `cli.main` with arguments, descriptors, exit codes.
Prints the counts as JSON; whatever is no clear error and not accepted is kept in the folder with all its files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

OUTCOMES = ("clear error", "accepted", "traceback", "signal", "hang", "memory", "unclear")
FAULTS = OUTCOMES[2:]
# A case takes at most a second or two; one that computes this long will not end, nor one that sleeps this long.
_CPU_S, _ASLEEP_S, _TICK_S = 60, 90.0, 0.05
# What a case may take beside what the package itself does, and where the system stops it.
_MOST_BYTES, _LIMIT_BYTES = 2 << 30, 6 << 30
_NO_MEMORY = "error: not enough memory"
_MARK = "<script>fuzz"


@dataclass(frozen=True)
class Case:
    """One input: what is called in the case's own folder, and how it came about."""

    run: Callable[[], None]
    about: str
    pages: tuple[str, ...] = ()  # HTML files in which no string of ours may stand unescaped


@dataclass
class Ended:
    """How a case ended."""

    outcome: str
    said: str


@dataclass
class Tally:
    """Counts per kind, and the first few faults."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def run_case(case: Case, folder: Path) -> Ended:
    """Fork, run, wait, classify."""
    out, err = folder / "stdout.txt", folder / "stderr.txt"
    child = os.fork()
    if child == 0:
        _become(case, folder, out, err)
    status, used, asleep = None, 0.0, 0.0
    while status is None:
        ended, code, usage = os.wait4(child, os.WNOHANG)
        if ended:
            status = code
            break
        time.sleep(_TICK_S)
        # Ticks and not the clock: a machine that stops everybody for a while is no hang.
        now = _cpu_s(child)
        asleep = asleep + _TICK_S if now == used else 0.0
        used = now
        if asleep > _ASLEEP_S:
            os.killpg(child, signal.SIGKILL)
            os.wait4(child, 0)
            return Ended("hang", f"asleep for {_ASLEEP_S:g} s")
    said = err.read_text(errors="replace")
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return Ended("hang" if name in ("SIGXCPU", "SIGKILL") else "signal", f"{name}\n{said}")
    if usage.ru_maxrss * 1024 > _MOST_BYTES + _own_bytes() or _NO_MEMORY in said:
        return Ended("memory", f"{usage.ru_maxrss / 1e6:.1f} GB\n{said}")
    return classify(os.WEXITSTATUS(status), out.read_text(errors="replace"), said, folder, case.pages)


def classify(code: int, out: str, err: str, folder: Path, pages: tuple[str, ...] = ()) -> Ended:
    """What an exit code and the texts come to; a clear error has a message and a hint."""
    if "Traceback (most recent call last)" in err or code == 1:
        return Ended("traceback", err)
    if any(not (letter.isprintable() or letter == "\n") for letter in out + err):
        return Ended("unclear", f"raw control characters\n{err!r}")
    for page in pages:
        if (folder / page).is_file() and _MARK in (folder / page).read_text(errors="replace"):
            return Ended("unclear", "a name stands in the page unescaped")
    if code == 0:
        return Ended("accepted", "")
    if "error: " in err and "\nhint: " in err and code in (2, 3, 4):
        return Ended("clear error", err[err.index("error: ") :])
    return Ended("unclear", f"exit code {code}\n{err}")


def _become(case: Case, folder: Path, out: Path, err: Path) -> None:
    code = 1
    try:
        os.setpgrp()
        os.chdir(folder)
        for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), descriptor)
        resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S + 5))
        resource.setrlimit(resource.RLIMIT_DATA, (_LIMIT_BYTES, _LIMIT_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.stdin, sys.stdout, sys.stderr = (
            os.fdopen(number, mode) for number, mode in ((0, "r"), (1, "w"), (2, "w"))
        )
        case.run()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:  # noqa: BLE001 - to be classified
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _cpu_s(process: int) -> float:
    """Of it and of the workers it started."""
    used = 0.0
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        for member in (parent, *parent.children(recursive=True)):
            times = member.cpu_times()
            used += times.user + times.system
    return used


def _own_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", nargs="+", required=True, metavar="KIND=COUNT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    asked = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # a child could not use the threads of its parent; read when torch is loaded
    from tests import fuzz_cases, fuzz_surroundings

    kinds = {**fuzz_cases.KINDS, **fuzz_surroundings.KINDS}
    workshop = fuzz_cases.Workshop(asked.folder / "workshop")
    tally = Tally()
    for text in asked.kinds:
        kind, _, count = text.partition("=")
        counts = tally.counts.setdefault(kind, Counter())
        for number in range(int(count)):
            folder = asked.folder / f"{kind}-{number}"
            folder.mkdir(parents=True)
            case = kinds[kind](random.Random(f"{asked.seed} {kind} {number}"), workshop, folder)
            ended = run_case(case, folder)
            counts[ended.outcome] += 1
            if ended.outcome in FAULTS:
                tally.faults.append(f"{folder.name}: {ended.outcome}: {case.about}\n{ended.said[-3000:]}")
                (folder / "fault.txt").write_text(tally.faults[-1], errors="backslashreplace")
            else:
                shutil.rmtree(folder)
        sys.stderr.write(f"{kind}: {dict(counts)}\n")
    sys.stdout.write(json.dumps({"counts": tally.counts, "faults": tally.faults}))


if __name__ == "__main__":
    main()
