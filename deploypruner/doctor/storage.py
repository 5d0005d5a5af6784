"""Where files go: the caches, and the room there is."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deploypruner.caches import cache_files, default_folder
from deploypruner.doctor.finding import Finding
from deploypruner.errors import InputError
from deploypruner.refusals import working_folder_exists
from deploypruner.report.units import scaled

# A build of ResNet-50 with its resume state takes a third of it.
_LEAST_ROOM = 1 << 30


def storage_findings() -> Iterator[Finding]:
    """The cache folder, and the disks of the working folder, of the cache and of temporary files."""
    folder = default_folder()
    yield cache(folder)
    if working_folder_exists():
        yield disk("build folder", Path.cwd(), "name a folder on another disk with --out")
    yield disk("cache folder", folder, "set DEPLOYPRUNER_CACHE to a folder on another disk")
    yield temporary()


def cache(folder: Path) -> Finding:
    """What the cache folder holds."""
    try:
        files = cache_files(folder)
    except InputError as error:
        return Finding("cache", error.message, "lack", "set DEPLOYPRUNER_CACHE to a folder that can be read")
    size = sum(file.bytes for file in files)
    facts = {"folder": str(folder), "files": len(files), "bytes": size}
    if not files:
        return Finding("cache", f"nothing yet in {folder}; layers are timed once, then kept there", facts=facts)
    some = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    says = f"{some} in {folder}, {scaled(size, 'B')} (deploypruner cache list)"
    damaged = [file for file in files if file.cpu is None]
    if damaged:
        return Finding(
            "cache",
            f"{says}; {len(damaged)} damaged, e.g. {damaged[0].path.name}",
            "lack",
            f"rm {shlex.quote(str(damaged[0].path))}",
            facts,
        )
    return Finding("cache", says, facts=facts)


def temporary() -> Finding:
    """The disk of temporary files; without one, nothing can be exported or timed."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        return Finding(
            "temporary files",
            f"no folder for them can be written to: {error.strerror}",
            "broken",
            "set TMPDIR to a folder that can be written to",
        )
    return disk("temporary files", folder, "set TMPDIR to a folder on another disk")


def disk(topic: str, folder: Path, hint: str) -> Finding:
    """Room on the disk of a folder, which need not be there yet.

    Args:
        topic: What the folder is for.
        folder: The folder.
        hint: What to do where there is little room, or where it cannot be written to.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        return Finding(topic, f"{there} is no folder", "lack", hint, {"folder": str(folder)})
    free = shutil.disk_usage(there).free
    says, facts = f"{scaled(free, 'B')} free for {folder}", {"folder": str(folder), "free_bytes": free}
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(topic, f"{says}, which cannot be written to", "lack", hint, facts)
    return Finding(topic, says, "lack", hint, facts) if free < _LEAST_ROOM else Finding(topic, says, facts=facts)
