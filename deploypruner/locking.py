"""Which process is at work: its identity across reused ids, and a lock on a folder that names it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import shlex
import sys
import time
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploypruner.errors import InputError

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one with the same id.

    Args:
        pid: Its id.
        started: Clock ticks from boot to its start; 0 where the system does not say.
        space: The id's name space and machine, a number, so that containers and machines which share a folder do not
            mistake each other's.
    """

    pid: int
    started: int
    space: str

    def alive(self) -> bool:
        """Is it still running? A process of another name space counts as alive: nobody here can know."""
        if self.space != _space():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return self.started in (0, _started(self.pid))


def this_process() -> Process:
    """The one that runs this."""
    return Process(os.getpid(), _started(os.getpid()), _space())


def _started(pid: int) -> int:
    try:
        # The name, in parentheses, may hold anything; the rest is numbers. Field 22 of proc(5).
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return 0 if fields[0] in "ZX" else int(fields[19])
    except (OSError, IndexError, ValueError):
        return 0


def _space() -> str:
    machine = zlib.crc32(platform.node().encode())
    try:
        return os.readlink("/proc/self/ns/pid").strip("pid:[]") + f"{machine:010d}"
    except OSError:
        return f"{machine}"


class FolderLock:
    """One process at a time writes to a folder.

    The operating system drops the lock with the process, however that ends; what the file says is for the message. On
    a file system without locks (some network drives) what the file says has to do: two processes that start at the
    same moment are not kept apart there, and the file of one that was killed on another machine is deleted by hand.

    Args:
        path: Of the lock file, in a folder that exists.

    Attributes:
        remark: What a user should know about it, "" for nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None
        self.remark = ""

    @property
    def held(self) -> bool:
        """Is it ours?"""
        return self._file is not None

    def acquire(self, folder: Path) -> None:
        """Take it; nothing where it is ours already.

        Raises:
            InputError: Another process has it, which is named.
            OSError: The file cannot be written.
        """
        while self._file is None:
            flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            file = os.open(self._path, flags, 0o666)
            if not self._lock(file):
                holder = _read(file)
                os.close(file)
                if holder is None or holder[0].alive():
                    raise _busy(folder, holder, self._path if self.remark else None)
                # The process is gone, and something that it started keeps the file open.
                self._path.unlink(missing_ok=True)
            elif self._is_current(file):
                self._file = file
                os.ftruncate(file, 0)
                os.pwrite(file, json.dumps(_about()).encode(), 0)
            else:
                os.close(file)  # its last holder removed it meanwhile

    def release(self) -> None:
        """Give it back; nothing where it is not ours."""
        if self._file is None:
            return
        self._path.unlink(missing_ok=True)
        os.close(self._file)
        self._file = None

    def moved(self, path: Path) -> None:
        """Follow the lock file to where its folder is now."""
        self._path = path

    def _lock(self, file: int) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self.remark = (
                f"the file system of {self._path.parent} has no locks ({os.strerror(error.errno).lower()}): do not "
                "start two builds there at the same moment"
            )
            holder = _read(file)
            return holder is None or not holder[0].alive() or holder[0] == this_process()
        return True

    def _is_current(self, file: int) -> bool:
        try:
            return os.path.samestat(os.fstat(file), self._path.stat())
        except FileNotFoundError:
            return False


def holder(path: Path) -> Process | None:
    """The process that has the lock of a folder, by its lock file; None where nobody has it."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None
    try:
        held = _read(file)
    finally:
        os.close(file)
    return held[0] if held is not None and held[0].alive() else None


def _about() -> dict[str, Any]:
    return {**asdict(this_process()), "command": shlex.join(["deploypruner", *sys.argv[1:]]), "since": time.time()}


def _read(file: int) -> tuple[Process, str, float] | None:
    try:
        held = json.loads(os.pread(file, 65536, 0))
        process = Process(int(held["pid"]), int(held["started"]), str(held["space"]))
        return process, ascii(str(held["command"]))[1:-1], float(held["since"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError):
        return None


def _busy(folder: Path, holder: tuple[Process, str, float] | None, only_said_by: Path | None) -> InputError:
    if holder is None:
        return InputError(f"another process is building in {folder}", hint="wait for it, or name another --out")
    process, command, since = holder
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(since))
    ended = f", delete {only_said_by} if it has ended long ago" if only_said_by else ""
    return InputError(
        f"process {process.pid} is building in {folder} since {when}: {command}",
        hint=f"wait for it, end it (kill {process.pid}){ended}, or name another --out",
    )
