"""The first lines that run on a device: they say what is there, take the archive if it is new, and become it.

Sent as text to whatever Python the shell there calls by the name that was given, so this file keeps to Python 3.6,
which can still say that it is too old. It reads no byte of the stream beyond its own: what follows belongs to the
archive.
"""

import hashlib
import json
import os
import sys
from typing import Any

NEEDED = (3, 9)
BITS = 64


def _say(**found: Any) -> None:
    """One line for whoever waits, which no banner looks like."""
    os.write(1, ("deploypruner-device " + json.dumps(found) + "\n").encode())


def place(folder: str) -> str:
    """Make the folder that everything is kept in, for this user alone; why it cannot be used, "" where it can."""
    try:
        if not os.path.isdir(folder):
            os.makedirs(folder, 0o700)
        owner = os.stat(folder).st_uid
    except OSError as error:
        return os.strerror(error.errno or 0)
    if owner != os.getuid():
        return f"it belongs to somebody else (user id {owner})"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written to"


def receive(path: str, size: int, digest: str) -> str:
    """Take the archive from the stream; why it could not be kept, "" where it is."""
    part, left, seen, why = f"{path}.{os.getpid()}", size, hashlib.sha256(), ""
    try:
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        return os.strerror(error.errno or 0)
    while left:
        some = os.read(0, min(left, 65536))
        if not some:
            return "the connection ended"
        left -= len(some)
        seen.update(some)
        try:
            while some and not why:
                some = some[os.write(target, some) :]
        except OSError as error:  # what is left is still taken from the stream
            why = os.strerror(error.errno or 0)
    os.close(target)
    if not why and seen.hexdigest() != digest:
        why = "it arrived damaged"
    if why:
        os.remove(part)
    else:
        os.rename(part, path)
    return why


def main(folder: str, digest: str, size: int) -> None:
    """Become the archive."""
    bits = sys.maxsize.bit_length() + 1
    facts = {"python": list(sys.version_info[:3]), "executable": sys.executable, "bits": bits}
    if sys.version_info < NEEDED:
        _say(lacks="python", **facts)
        return
    if bits < BITS:
        _say(lacks="bits", **facts)
        return
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = os.path.expanduser(folder or os.path.join(base, "deploypruner-device"))
    why = place(folder)
    if why:
        _say(lacks="folder", folder=folder, why=why, **facts)
        return
    path = os.path.join(folder, f"worker-{digest[:16]}.pyz")
    known = os.path.isfile(path)
    _say(known=known, folder=folder, **facts)
    why = "" if known else receive(path, size, digest)
    if why:
        _say(lacks="room", folder=folder, why=why, **facts)
        return
    os.execv(sys.executable, [sys.executable, path, "agent", folder])
