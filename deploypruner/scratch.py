"""Scratch folders: gone when their block ends, and those of killed runs gone with the next one."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploypruner.atomic import no_space, unsaid_errors
from deploypruner.errors import InputError
from deploypruner.locking import Process, this_process

_NAME = re.compile(r"deploypruner-(\d+)-(\d+)-(\d+)-\w+")


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a new folder under TMPDIR, named after this process.

    Raises:
        InputError: Its disk is full, or there is no such folder.
    """
    _require_folder()
    sweep()
    process = this_process()
    prefix = f"deploypruner-{process.pid}-{process.started}-{process.space}-"
    try:
        with (
            tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder,
            unsaid_errors(Path(folder)),
        ):
            yield Path(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_space(None) from error


def _require_folder() -> None:
    """Find the folder for temporary files, which Python looks for once.

    Raises:
        InputError: There is none that can be written to.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise InputError(
            f"no folder for temporary files can be written to: {error.strerror}",
            hint="set TMPDIR to a folder with room",
        ) from error


def sweep() -> None:
    """Delete what killed runs of this user left under TMPDIR: folders of processes that are gone."""
    for entry in os.scandir(tempfile.gettempdir()):
        found = _NAME.fullmatch(entry.name)
        if found is None:
            continue
        pid, started, space = found.groups()
        try:
            about = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # another run swept it
            continue
        ours = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
        if ours and not Process(int(pid), int(started), space).alive():
            shutil.rmtree(entry.path, ignore_errors=True)
