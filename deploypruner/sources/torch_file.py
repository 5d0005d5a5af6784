"""What kind of file a .pt is, from its bytes alone: nothing here unpickles."""

from __future__ import annotations

import pickletools
from enum import Enum
from pathlib import Path
from typing import IO
from zipfile import ZipFile

from deploypruner.errors import InputError
from deploypruner.reading import ARCHIVE_DAMAGE, open_archive

__all__ = ["DAMAGE", "Kind", "kind_of"]

# The number torch.save wrote first before it wrote zip archives.
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# What torch.load(weights_only=True) raises over damaged bytes.
DAMAGE = (*ARCHIVE_DAMAGE, TypeError, AttributeError, AssertionError, MemoryError, OverflowError)
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, names of the storages that follow


class Kind(Enum):
    """What a file is, in words that finish "the file is ..."."""

    ZIP = "a torch.save archive"
    LEGACY = "a torch.save file of the old format"
    TORCHSCRIPT = "a TorchScript archive"
    PROGRAM = "a torch.export program"
    PICKLE = "a plain pickle, not written by torch.save"
    ALLOCATES = "a pickle that asks for memory of its own ('bytearray'), which no tensor needs"
    DAMAGED = "truncated or corrupt"


def kind_of(path: Path) -> Kind:
    """Classify a file that exists and is not empty.

    Raises:
        InputError: It is an archive that would unpack to far more than its size.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    legacy = _LEGACY_MAGIC in head
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES if legacy else 1):
                if _allocates(file):
                    return Kind.ALLOCATES
        except (ValueError, LookupError, OverflowError, MemoryError):
            return Kind.DAMAGED
    return Kind.LEGACY if legacy else Kind.PICKLE


def _kind_of_zip(path: Path) -> Kind:
    try:
        with open_archive(path, what="model") as archive:
            # torch.load does not look at checksums: a flipped bit would become a weight of 1e20.
            damaged = archive.testzip() is not None
            kind = _kind_of_members(archive)
            start = min((member.header_offset for member in archive.infolist()), default=0)
    except InputError as error:
        if isinstance(error.__cause__, ARCHIVE_DAMAGE):
            return Kind.DAMAGED
        raise  # it would unpack to more than it may
    # A program cut short may end in the whole archive that it carries; zipfile would read that one.
    if start > 0 or damaged:
        return Kind.DAMAGED
    return kind


def _kind_of_members(archive: ZipFile) -> Kind:
    names = archive.namelist()
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return Kind.PROGRAM
    if any(name.endswith("/constants.pkl") for name in names):
        return Kind.TORCHSCRIPT
    for name in names:
        if name.endswith("/data.pkl"):
            with archive.open(name) as member:
                return Kind.ALLOCATES if _allocates(member) else Kind.ZIP
    return Kind.DAMAGED


def _allocates(file: IO[bytes]) -> bool:
    """Would unpickling this call bytearray? torch allows that without trust, and a few bytes ask for gigabytes."""
    # Older pickles name it in one piece, "__builtin__ bytearray", newer ones in two.
    named = [argument for _, argument, _ in pickletools.genops(file) if isinstance(argument, str)]
    return any(name.rpartition(" ")[2] == "bytearray" for name in named)
