"""What is kept of this machine between builds: the folder of the timings, and the files in it that are ours."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploypruner.errors import InputError
from deploypruner.reading import read_json
from deploypruner.refusals import refusal

# As `latency.cache` and `latency.kernel_rates` name them: runtime, precision, threads, digest of the device.
_NAME = re.compile(r"(latency|kernels)-(\w+)-(\w+)-(\d+)-[0-9a-f]{16}\.json")
_KINDS = {"latency": "times of layers", "kernels": "rates of the sparse kernels"}


def default_folder() -> Path:
    """$DEPLOYPRUNER_CACHE, or the folder called deploypruner in the user's cache folder."""
    named = os.environ.get("DEPLOYPRUNER_CACHE")
    if named:
        return Path(named)
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path(os.path.expanduser("~")) / ".cache") / "deploypruner"


@dataclass(frozen=True)
class CacheFile:
    """A file that earlier builds left for later ones.

    Args:
        path: Where it is.
        holds: "times of layers".
        setting: Runtime, precision and threads it is of: "openvino fp32, 1 thread".
        cpu: Processor it was measured on, None where the file is damaged.
        bytes: Its size.
        changed: When it was written last, in seconds since 1970.
    """

    path: Path
    holds: str
    setting: str
    cpu: str | None
    bytes: int
    changed: float


def cache_files(folder: Path | None = None) -> list[CacheFile]:
    """The files in the cache folder that this tool wrote, by name; none where there is no such folder.

    A link, a folder, or a name that we do not give is somebody else's and left out.

    Args:
        folder: None for `default_folder`.

    Raises:
        InputError: The folder cannot be read.
    """
    folder = folder or default_folder()
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise refusal(error, f"read the cache folder {folder}") or InputError(
            f"the cache folder {folder} cannot be read: {error.strerror}", hint="set DEPLOYPRUNER_CACHE to a folder"
        ) from error
    found = []
    for entry in entries:
        named = _NAME.fullmatch(entry.name)
        about = entry.stat(follow_symlinks=False)
        if named is None or not stat.S_ISREG(about.st_mode):
            continue
        kind, runtime, precision, threads = named.groups()
        setting = f"{runtime} {precision}, {threads} thread{'' if threads == '1' else 's'}"
        path = Path(entry.path)
        found.append(CacheFile(path, _KINDS[kind], setting, _cpu(path), about.st_size, about.st_mtime))
    return found


def delete(files: list[CacheFile]) -> None:
    """Delete files that `cache_files` found; one that is gone already is no error.

    Raises:
        InputError: One cannot be deleted; those before it are.
    """
    for file in files:
        try:
            file.path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(error, f"delete {file.path}") or InputError(
                f"{file.path} cannot be deleted: {error.strerror}", hint="check its permissions"
            ) from error


def _cpu(path: Path) -> str | None:
    try:
        document: Any = read_json(path, what="cache", hint="")
    except (InputError, OSError):
        return None
    device = document.get("device") if isinstance(document, dict) else None
    cpu = device.get("cpu") if isinstance(device, dict) else None
    return cpu if isinstance(cpu, str) else None
