"""Where a build is made: in its folder, or beside a finished one until it is finished, too."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

from deploypruner.build.folder import BuildFolder
from deploypruner.errors import InputError

_NEW = ".new"
"""Of the folder beside a finished build in which its successor is made."""


def place_for(
    folder: BuildFolder,
    *,
    overwrite: bool,
    resume: bool = False,
    offer: Callable[[Path], str],
) -> BuildFolder:
    """The folder to build in so that a finished build stays whole until there is another.

    Args:
        folder: That was asked for.
        overwrite: Whether a finished build in it may be replaced.
        resume: Whether that build is gone on with, which is the same as replacing it by what it becomes.
        offer: Says how to build in a folder that is free, or replace the finished one.

    Returns:
        `folder` itself where nothing in it is finished.

    Raises:
        InputError: It holds a finished build that may not, or cannot, be replaced, or what another command made.
    """
    folder.require_kind()
    if not folder.finished:
        return folder
    root = folder.root
    if not (overwrite or resume):
        raise InputError(
            f"{root} holds a finished {folder.kind}, which is kept",
            hint=offer(free_name(root)),
        )
    place = Path(os.path.realpath(root))
    if os.path.ismount(place):
        raise InputError(
            f"{root} is a mount point, which another folder cannot take the place of",
            hint=offer(root / "build"),
        )
    if Path.cwd().is_relative_to(place):
        raise InputError(
            f"{root} is the working folder, which would be replaced under it",
            hint=f"cd {place.parent}, and repeat it",
        )
    shown = place if root.is_symlink() or root.name in ("", "..") else root
    folder.root = shown
    return BuildFolder(shown.with_name(shown.name + _NEW), folder.kind, names=folder.names, replaces=folder)


def free_name(root: Path) -> Path:
    """The first of build-2, build-3, ... that is not there."""
    named = root if root.name not in ("", "..") else Path(os.path.realpath(root))
    tries = (named.with_name(f"{named.name}-{number}") for number in count(2))
    return next(path for path in tries if not os.path.lexists(path))
