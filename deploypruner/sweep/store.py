"""All trials of a sweep in one SQLite file, which the driver alone writes; anybody may read it meanwhile."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploypruner import __version__
from deploypruner.errors import InputError
from deploypruner.sweep.trial_record import FORMAT, SweepTrial, TrialResult

_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS trials (
    id TEXT NOT NULL,
    phase TEXT NOT NULL, number INTEGER NOT NULL, widths TEXT NOT NULL,
    seed INTEGER NOT NULL, epochs INTEGER NOT NULL, std REAL NOT NULL, predicted_ms REAL,
    quality TEXT, dense REAL, found REAL, lost REAL, macs INTEGER, params INTEGER, seconds REAL, why TEXT,
    PRIMARY KEY (id, phase)
);
"""
_PLANNED = ("phase", "number", "widths", "seed", "epochs", "std")
_FOUND = ("quality", "dense", "found", "lost", "macs", "params", "seconds", "why")


@dataclass(frozen=True)
class StoredTrial:
    """One row.

    Args:
        id: Identity of the trial.
        trial: What was to be tried.
        predicted_ms: Of the recipe; None where no time could be predicted.
        result: None while it is not finished.
    """

    id: str
    trial: SweepTrial
    predicted_ms: float | None
    result: TrialResult | None

    @property
    def kept(self) -> TrialResult | None:
        """The result, where there is one and nothing went wrong."""
        return self.result if self.result is not None and not self.result.why else None


class TrialStore:
    """`sweep.sqlite`, opened for writing.

    Args:
        path: Of the file.

    Raises:
        InputError: It is no such file, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _sound(path):
            self._base = sqlite3.connect(path)
            self._base.executescript(_TABLES)
            about = self.about()
        _check_version(path, about)
        if not about:
            self.tell({"format": FORMAT, "version": __version__})

    def close(self) -> None:
        """Let the file go."""
        self._base.close()

    def about(self) -> dict[str, Any]:
        """What was told of the sweep."""
        return _about(self._base)

    def tell(self, facts: dict[str, Any]) -> None:
        """Keep facts of the sweep."""
        with _sound(self._path), self._base:
            self._base.executemany(
                "INSERT OR REPLACE INTO about VALUES (?, ?)",
                [(name, json.dumps(value)) for name, value in facts.items()],
            )

    def plan(self, trials: Iterable[tuple[str, SweepTrial, float | None]]) -> None:
        """Add trials that are to be done; those that are there stay as they are."""
        rows = [(name, *_plain(trial), ms) for name, trial, ms in trials]
        with _sound(self._path), self._base:
            self._base.executemany(
                f"INSERT OR IGNORE INTO trials (id, {', '.join(_PLANNED)}, predicted_ms) "
                f"VALUES ({', '.join('?' * (len(_PLANNED) + 2))})",
                rows,
            )

    def finish(self, name: str, result: TrialResult) -> None:
        """Enter the result of a trial, in whatever phases it stands."""
        values = asdict(result)
        found = [values["drop" if column == "lost" else column] for column in _FOUND]
        with _sound(self._path), self._base:
            self._base.execute(
                f"UPDATE trials SET {', '.join(f'{c} = ?' for c in _FOUND)} WHERE id = ?", (*found, name)
            )

    def trials(self, phase: str | None = None) -> list[StoredTrial]:
        """All trials, or those of a phase, in their order."""
        return _trials(self._base, phase)


def read_store(path: Path) -> tuple[dict[str, Any], list[StoredTrial]]:
    """What is in a file that another process may be writing.

    Raises:
        InputError: There is no such file, or it is of another version.
    """
    if not path.is_file():
        raise InputError(f"{path.parent} holds no sweep", hint="name the folder that a sweep was given with --out")
    with _sound(path):
        base = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
        try:
            about = _about(base)
            _check_version(path, about)
            return about, _trials(base, None)
        finally:
            base.close()


def _plain(trial: SweepTrial) -> tuple[Any, ...]:
    widths = json.dumps(dict(trial.widths))
    return trial.phase, trial.number, widths, trial.seed, trial.epochs, trial.std


def _about(base: sqlite3.Connection) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in base.execute("SELECT name, value FROM about")}


def _trials(base: sqlite3.Connection, phase: str | None) -> list[StoredTrial]:
    columns = ", ".join(("id", *_PLANNED, "predicted_ms", *_FOUND))
    rows = base.execute(
        f"SELECT {columns} FROM trials WHERE ?1 IS NULL OR phase = ?1 ORDER BY phase, number, seed", (phase,)
    )
    return [_stored(row) for row in rows]


def _stored(row: tuple[Any, ...]) -> StoredTrial:
    name, phase, number, widths, seed, epochs, std, ms, *found = row
    result = None if found[-1] is None else TrialResult(*found)
    return StoredTrial(name, SweepTrial(phase, number, json.loads(widths), seed, epochs, std), ms, result)


def _check_version(path: Path, about: dict[str, Any]) -> None:
    if about and about.get("format") != FORMAT:
        raise InputError(
            f"{path} is of a sweep of format {about.get('format')}, made by version {about.get('version')}; this "
            f"version "
            f"reads format {FORMAT}",
            hint="use that version, or name another folder with --out",
        )


@contextmanager
def _sound(path: Path) -> Iterator[None]:
    """Say what is wrong with the file in our words.

    Raises:
        InputError: It is damaged, or cannot be read or written.
    """
    try:
        yield
    except (sqlite3.Error, ValueError) as error:
        raise InputError(
            f"{path} cannot be used: {error}", hint="free some space, or name another folder with --out"
        ) from error
