"""What kind of file a .pt is, from its bytes alone: nothing here unpickles."""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from enum import Enum
from pathlib import Path

from deploypruner.errors import InputError

# The number torch.save wrote first before it wrote zip archives.
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
# What torch.load(weights_only=True) raises over damaged bytes.
DAMAGE = (RuntimeError, OSError, LookupError, ValueError, EOFError, struct.error, zipfile.BadZipFile)
# torch.save and torch.export.save do not compress; TorchScript compresses its code alone.
_MOST_UNFOLDED = 20
_LEGACY_PICKLES = 5  # magic number, protocol, machine, the object, names of the storages that follow


class Kind(Enum):
    """What a file is, in words that finish "the file is ..."."""

    ZIP = "a torch.save archive"
    LEGACY = "a torch.save file of the old format"
    TORCHSCRIPT = "a TorchScript archive"
    PROGRAM = "a torch.export program"
    PICKLE = "a plain pickle, not written by torch.save"
    BOMB = "an archive that would unfold to many times its size"
    DAMAGED = "truncated or corrupt"


def check_present(path: Path, *, what: str) -> None:
    """Check that `path` is a file with something in it.

    Raises:
        InputError: It is missing, a folder or empty; `what` says what it was to be.
    """
    if not path.exists():
        raise InputError(f"no {what} file '{path}'", hint=f"looked in {path.absolute().parent}")
    if not path.is_file():
        raise InputError(f"{what} '{path}' is not a file", hint="name the file itself")
    if path.stat().st_size == 0:
        raise InputError(f"{what} file '{path}' is empty (0 bytes)", hint="copy or download it again")


def kind_of(path: Path) -> Kind:
    """Classify a file that exists and is not empty."""
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"PK"):
        return _kind_of_zip(path)
    legacy = _LEGACY_MAGIC in head
    with path.open("rb") as file:
        try:
            for _ in range(_LEGACY_PICKLES if legacy else 1):
                for _operation in pickletools.genops(file):
                    pass
        except (ValueError, LookupError, OverflowError):
            return Kind.DAMAGED
    return Kind.LEGACY if legacy else Kind.PICKLE


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if sum(member.file_size for member in archive.infolist()) > _MOST_UNFOLDED * path.stat().st_size:
                return Kind.BOMB
            # torch.load does not look at checksums: a flipped bit would become a weight of 1e20.
            damaged = archive.testzip() is not None
            start = min((member.header_offset for member in archive.infolist()), default=0)
    except (zipfile.BadZipFile, zlib.error, *DAMAGE):
        return Kind.DAMAGED
    # A program cut short may end in the whole archive that it carries; zipfile would read that one.
    if start > 0 or damaged:
        return Kind.DAMAGED
    if any(name.endswith(("models/model.json", "serialized_exported_program.json")) for name in names):
        return Kind.PROGRAM
    if any(name.endswith("/constants.pkl") for name in names):
        return Kind.TORCHSCRIPT
    return Kind.ZIP if any(name.endswith("/data.pkl") for name in names) else Kind.DAMAGED
