"""How far a sweep is, from another terminal: read from its file while the driver writes it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from deploypruner.build.folder import LOCK, BuildFolder
from deploypruner.locking import holder
from deploypruner.report import units
from deploypruner.sweep.folder import DOCUMENT, KIND, PAGE, STORE
from deploypruner.sweep.store import StoredTrial, read_store

_PHASES = {"space": "recipes", "look": "looks", "refined": "finalists", "again": "winners again"}


@dataclass(frozen=True)
class SweepStatus:
    """How far it is.

    Args:
        text: Lines for the user.
        running: Is a driver at work?
    """

    text: str
    running: bool


def sweep_status(folder: Path) -> SweepStatus:
    """Look at a sweep; nothing in its folder is changed.

    Raises:
        InputError: The folder holds no sweep, or one of another version.
    """
    sweep = BuildFolder(folder, KIND, names=())  # nothing is made here, and those of the stages load torch
    about, trials = read_store(sweep.path(STORE))
    driver = holder(sweep.path(LOCK))
    lines = [f"{folder}: {about.get('budget', 'just begun')}"]
    lines += [_line(label, [t for t in trials if t.trial.phase == phase]) for phase, label in _PHASES.items()]
    best = min((t.kept.drop for t in trials if t.kept and t.trial.phase in ("space", "refined")), default=None)
    if best is not None:
        lines.append(f"best so far: {best:.2f} points lost")
    if driver is not None:
        lines.append(f"process {driver.pid} is at work{_left(trials, int(about.get('workers', 1)))}")
    elif sweep.has(DOCUMENT) and sweep.finished and not any(t.result is None for t in trials):
        lines.append(f"finished: {sweep.path(PAGE)}")
    else:
        lines.append("nobody is at work; --resume goes on")
    return SweepStatus("\n".join(line for line in lines if line), driver is not None)


def _line(label: str, trials: list[StoredTrial]) -> str:
    if not trials:
        return ""
    states = Counter("done" if t.kept else "failed" if t.result else "to do" for t in trials)
    return (
        f"{label}: {', '.join(f'{states[state]} {state}' for state in ('done', 'failed', 'to do') if states[state])}"
    )


def _left(trials: list[StoredTrial], workers: int) -> str:
    """Time that the trials which are planned still take, by what those of their phase took."""
    seconds = 0.0
    for phase in _PHASES:
        mine = [t for t in trials if t.trial.phase == phase]
        took = [t.kept.seconds for t in mine if t.kept]
        left = sum(t.result is None for t in mine)
        if left and not took:
            return ""
        seconds += left * sum(took) / len(took) if left else 0.0
    return f", about {units.seconds(seconds / workers)} left of what is planned" if seconds else ""
