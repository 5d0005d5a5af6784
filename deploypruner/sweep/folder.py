"""The folder of a sweep: what lies in it, and who may make one where."""

from __future__ import annotations

from pathlib import Path

from deploypruner.build.folder import BuildFolder
from deploypruner.build.register import stage_files
from deploypruner.errors import InputError

KIND = "sweep"
TRIALS = "trials"
"""Folder of the trials' results."""

STORE, DOCUMENT, PAGE, WINNER = "sweep.sqlite", "sweep.json", "sweep.html", "winner.toml"
JOURNAL = f"{STORE}-journal"


def sweep_folder(out: Path) -> BuildFolder:
    """The folder of a sweep."""
    names = (*stage_files(), STORE, JOURNAL, DOCUMENT, PAGE, WINNER)
    return BuildFolder(out, KIND, names=names, inner=TRIALS)


def require_sweep_place(out: Path, *, resume: bool) -> BuildFolder:
    """The folder, where a sweep may be made in it.

    Raises:
        InputError: It holds one that is not to be gone on with, or what another command made.
    """
    folder = sweep_folder(out)
    folder.require_kind()
    if not resume and (folder.finished or folder.has(STORE)):
        state = "finished" if folder.finished else "begun"
        raise InputError(
            f"{out} holds a {state} {KIND}, which is kept",
            hint="--resume goes on with it, also with more --samples; --out names another folder",
        )
    return folder
