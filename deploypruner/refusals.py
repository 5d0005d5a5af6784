"""What the operating system refuses, in words a user can act on."""

from __future__ import annotations

import errno
import os
import sys

from deploypruner.errors import InputError

FREE_SPACE = "free some space and run it again; a build goes on with --resume"
"""What to do about a full disk."""

# What can be done about a refusal; every other one is a mistake of ours.
_HINTS: dict[int, str] = {
    errno.ENOSPC: FREE_SPACE,
    errno.EDQUOT: FREE_SPACE,
    errno.EFBIG: "allow larger files: ulimit -f unlimited",
    errno.EMFILE: "allow more open files: ulimit -n 1024",
    errno.ENFILE: "close other programs: the whole machine has too many files open",
    errno.ENOMEM: "close other programs, or give it less to do at once",
    errno.EAGAIN: "close other programs, or allow more processes: ulimit -u",
    errno.EACCES: "check its permissions",
    errno.EPERM: "check its permissions",
    errno.EROFS: "name a folder that can be written to",
    errno.EIO: "check the disk it is on",
    errno.ENAMETOOLONG: "give it a shorter name",
    errno.ELOOP: "its symbolic links lead in a circle; name the file itself",
    errno.ENXIO: "name a regular file",
    errno.ENODEV: "name a regular file",
    errno.ESTALE: "the network drive it is on was lost; mount it again",
    errno.ETXTBSY: "wait until the program that uses it has ended",
}
# Native libraries say "no" in their own exceptions; these are the words for too little memory and for EMFILE.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")
_FILES_NEEDED, _FILES_WANTED = 128, 1024
_NO_FILES = ("Too many open files", "Error 24")


def refusal(error: OSError, doing: str = "") -> InputError | None:
    """The error for what the operating system refused; None where that points to a mistake of ours.

    Args:
        error: As it was raised.
        doing: "write to build"; by default the file it was about.
    """
    if not working_folder_exists():
        return InputError("the working folder does not exist any more", hint="change to a folder that exists")
    if "usable temporary directory" in str(error):
        return InputError(
            "there is no folder for temporary files", hint="set TMPDIR to a folder that can be written to"
        )
    if error.errno not in _HINTS:
        return None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = f"no space left while writing {error.filename or 'the output'}"
    else:
        about = doing or (f"use {_shown(error.filename)}" if error.filename else "go on")
        what = f"cannot {about}: {os.strerror(error.errno).lower()}"
    return InputError(what, hint=_HINTS[error.errno])


def native_refusal(error: BaseException) -> InputError | None:
    """The error for too little memory or too many open files as Python and native libraries report them."""
    said = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(s in said for s in _NO_MEMORY)):
        return InputError("not enough memory", hint=_HINTS[errno.ENOMEM])
    if isinstance(error, (ImportError, RuntimeError)) and any(s in said for s in _NO_FILES):
        return InputError("cannot go on: too many open files", hint=_HINTS[errno.EMFILE])
    return None


def working_folder_exists() -> bool:
    """False once somebody has deleted it."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def allow_open_files() -> None:
    """Raise this process's own limit on open files where it is too low for the libraries, which end without a word.

    Raises:
        InputError: The system does not allow enough of them.
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, _FILES_WANTED)
    if most < _FILES_NEEDED:
        raise InputError(
            f"only {most} open files are allowed, and at least {_FILES_NEEDED} are needed", hint=_HINTS[errno.EMFILE]
        )
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def file_size_limit() -> int | None:
    """Bytes that a file may have (`ulimit -f`), None for no limit."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _shown(name: object) -> str:
    text = os.fsdecode(name) if isinstance(name, (bytes, str)) else str(name)
    return f"'{text}'" if len(text) <= 100 else f"'{text[:100]}...'"
