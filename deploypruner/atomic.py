"""Files that appear whole or not at all: written beside their place, flushed, then renamed."""

from __future__ import annotations

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

from safetensors import SafetensorError

from deploypruner.errors import InputError
from deploypruner.refusals import file_size_limit, refusal, working_folder_exists

SCRATCH = ".writing-"
"""Prefix of the folders in which files are written."""

# Bytes of names that are no UTF-8: what this makes of them is right in JSON, and readable elsewhere.
ERRORS = "backslashreplace"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What is wrong with --out itself; see `refusals` for the rest.
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
)
# Where a native library fails to write and does not say why, this much free space means a full disk.
_NO_SPACE_BYTES = 1 << 20


@contextmanager
def replacing(final: Path, siblings: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a temporary path beside `final`, whose place the file takes once the block succeeds.

    Args:
        final: The file; its folder is made.
        siblings: Further suffixes the writer produces beside it.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    with os_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=final.parent, prefix=SCRATCH) as scratch:
            temporary = Path(scratch) / final.name
            try:
                yield temporary
            except (RuntimeError, SafetensorError) as error:
                # Native libraries do not say why they could not write.
                if shutil.disk_usage(scratch).free < _NO_SPACE_BYTES:
                    raise _no_space(final) from error
                if file_size_limit() is not None:
                    refused = refusal(OSError(errno.EFBIG, ""), f"write to {final}")
                    raise refused or error from error
                raise
            for suffix in (*siblings, final.suffix):
                written = temporary.with_suffix(suffix)
                written.chmod(0o666 & ~_umask())  # libraries write some files for their owner alone
                with written.open("rb") as file:
                    os.fsync(file.fileno())
                written.replace(final.with_suffix(suffix))


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
def os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into errors a user can act on.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(path) from error
        if error.errno in _REFUSED and working_folder_exists():
            raise InputError(f"cannot write to {path}: {error.strerror}", hint="choose another --out") from error
        raise refusal(error, f"write to {path}") or error from error


def _no_space(path: Path) -> InputError:
    return InputError(
        f"no space left on the disk while writing {path}",
        hint="free some space and run the same command with --resume; what was finished is kept",
    )
