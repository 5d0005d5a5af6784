"""Files that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploypruner.errors import DeployPrunerError, InputError
from deploypruner.refusals import FREE_SPACE, file_size_limit, refusal, working_folder_exists

SCRATCH = ".writing-"
"""Prefix of the folders in which files are written."""

ANOTHER_OUT = "choose another --out"
"""What to do where a build's folder cannot be written to."""

# Bytes of names that are no UTF-8: what this makes of them is right in JSON, and readable elsewhere.
ERRORS = "backslashreplace"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What is wrong with the place itself; see `refusals` for the rest. A file that is mounted from elsewhere cannot be
# replaced by renaming (EBUSY, EXDEV).
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP, errno.EBUSY, errno.EXDEV),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
)
# Where a library fails to write and does not say why, a disk without this much room is a full one.
_ROOM_BYTES = 1 << 20
# Where nothing failed, or for a reason that is known, it is one without this much: a library may stop at a full disk
# in the middle of a file and not say a word.
_LEAST_BYTES = 1 << 12
# Of renameat2(2): paths are relative to the working folder, and names are exchanged.
_HERE, _EXCHANGE = -100, 2


@contextmanager
def replacing(final: Path, siblings: tuple[str, ...] = (), *, instead: str = ANOTHER_OUT) -> Iterator[Path]:
    """Yield a temporary path beside `final`, whose place the file takes once the block succeeds.

    Args:
        final: The file; its folder is made.
        siblings: Further suffixes the writer produces beside it.
        instead: What to do where that place cannot be written to.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    with os_errors(final, instead):
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=SCRATCH) as scratch:
            temporary = Path(scratch) / final.name
            with unsaid_errors(Path(scratch)):
                yield temporary
            for suffix in (*siblings, final.suffix):
                written = temporary.with_suffix(suffix)
                written.chmod(0o666 & ~_umask())  # libraries write some files for their owner alone
                with written.open("rb") as file:
                    os.fsync(file.fileno())
                written.replace(final.with_suffix(suffix))


def exchange(first: Path, second: Path) -> None:
    """Give two files or folders of one file system each other's names, in one step where the system has one.

    Elsewhere `second` has no name for the moment between two renames.

    Raises:
        OSError: They cannot be renamed; both are where they were.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "renameat2"):
        done = libc.renameat2(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE)
        if done == 0:
            return
        number = ctypes.get_errno()
        if number not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
            raise OSError(number, os.strerror(number), str(second))
    apart = Path(tempfile.mkdtemp(dir=second.parent, prefix=SCRATCH)) / second.name
    try:
        second.rename(apart)
        try:
            first.rename(second)
        except OSError:
            apart.rename(second)
            raise
        apart.rename(first)
    finally:
        apart.parent.rmdir()


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file atomically.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json_text(document), encoding="utf-8", errors=ERRORS)


def json_text(document: Any) -> str:
    """A document as JSON; NaN is a programming error."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _umask() -> int:
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def os_errors(path: Path, instead: str = ANOTHER_OUT) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into errors a user can act on.

    Args:
        path: What is written.
        instead: What to do where that place cannot be written to.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise no_space(None if error.filename == tempfile.gettempdir() else path) from error
        if error.errno in _REFUSED and working_folder_exists():
            raise InputError(f"cannot write to {path}: {os.strerror(error.errno)}", hint=instead) from error
        raise refusal(error, f"write to {path}") or error from error


@contextmanager
def unsaid_errors(folder: Path) -> Iterator[None]:
    """Ask the system what it has against writing in `folder`, where a library that writes there does not say it.

    Native libraries fail with words of their own, find their own file damaged, or go on as if all had been written.

    Args:
        folder: With nothing in it but what the block writes.

    Raises:
        OSError: What the system says.
    """
    temporary = tempfile.gettempdir()
    try:
        yield
    except DeployPrunerError:
        _require_room(folder, _LEAST_BYTES)
        raise
    except OSError as error:
        # Libraries have temporary files of their own, and Python does not say which one could not be written.
        if error.errno in _FULL and _has_room(folder) and not _has_room(Path(temporary)):
            raise OSError(error.errno, error.strerror, temporary) from error
        raise
    except Exception:  # a library says it in many ways
        limit = file_size_limit()
        if limit is not None and limit < _ROOM_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG)) from None
        _require_room(folder, _ROOM_BYTES)
        raise
    _require_room(folder, _LEAST_BYTES)


def _require_room(folder: Path, size: int) -> None:
    """Write `size` bytes more, where that is in doubt: root may use room that nobody else has.

    Raises:
        OSError: What the system says; a file in the folder has reached the limit on the size of files.
    """
    limit = file_size_limit()
    if limit is not None and any(file.stat().st_size >= limit for file in folder.rglob("*") if file.is_file()):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    if not _has_room(folder):
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(size if limit is None else min(size, limit)))
            file.flush()
            os.fsync(file.fileno())


def _has_room(folder: Path) -> bool:
    return shutil.disk_usage(folder).free >= _ROOM_BYTES


def no_space(path: Path | None) -> InputError:
    """The error for a full disk: that of a file, or with None of temporary files."""
    if path is None:
        return InputError(
            f"no space left on the disk while writing temporary files to {tempfile.gettempdir()}",
            hint=f"set TMPDIR to a folder on another disk, or {FREE_SPACE}",
        )
    return InputError(f"no space left on the disk while writing {path}", hint=FREE_SPACE)
