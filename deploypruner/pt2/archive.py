"""The members of a .pt2 archive: known names, stored as they are, no larger than the file that holds them."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path
from typing import IO, Any

from deploypruner.pt2.refusal import AGAIN_HINT, Refusal, shown

_MOST_MEMBERS = 200_000
_LONGEST_JSON = 1 << 30  # bytes
# What torch.export.save writes; "extra" holds the user's own texts, which nothing here reads.
_CURRENT = re.compile(
    r"archive_format|archive_version|byteorder|version|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id|[\w.-]+)"
    r"|models/[\w.-]+\.json|data/sample_inputs/[\w.-]+\.pt|extra/.+"
    r"|data/(weights|constants)/([\w.-]+\.pt|[\w.-]+_config\.json|(weight|tensor|custom_obj|opaque_obj)_\d+)"
)
# What it wrote until torch 2.7.
_EARLIER = re.compile(
    r"version|serialized_exported_program\.json|serialized_(state_dict|constants)\.(pt|json)"
    r"|serialized_example_inputs\.pt|extra_files/.+"
)


class Archive:
    """An open archive.

    Args:
        file: Seekable, binary, opened by the caller.

    Raises:
        Refusal: No zip archive of the kind that torch writes; a member it does not write.
    """

    def __init__(self, file: IO[bytes]) -> None:
        size = file.seek(0, 2)
        try:
            self._zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise Refusal(f"is no archive that can be read: {error}", AGAIN_HINT) from None
        found = self._zip.infolist()
        _check_size(found, size)
        names = [member.filename for member in found]
        if len(set(names)) < len(names):
            raise Refusal("has two members of one name", AGAIN_HINT)
        self.earlier = "serialized_exported_program.json" in names
        self._root = "" if self.earlier else f"{names[0].split('/')[0]}/" if names else ""
        self._members = {self._short(name): member for name, member in zip(names, found, strict=True)}

    def _short(self, name: str) -> str:
        if not name.startswith(self._root):
            raise Refusal(f"member {shown(name)} is not in the folder {shown(self._root)}", AGAIN_HINT)
        short = name[len(self._root) :]
        if ".." in Path(short).parts or not (_EARLIER if self.earlier else _CURRENT).fullmatch(short):
            raise Refusal(f"member {shown(name)} is nothing that torch.export.save writes")
        return short

    def has(self, name: str) -> bool:
        """Is there a member of this name?"""
        return name in self._members

    def read(self, name: str) -> bytes:
        """Bytes of a member.

        Raises:
            Refusal: It is missing or damaged.
        """
        if name not in self._members:
            raise Refusal("is missing", AGAIN_HINT).at(name)
        try:
            return self._zip.read(self._members[name])
        except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
            raise Refusal(f"is damaged: {error}", AGAIN_HINT).at(name) from None

    def read_json(self, name: str) -> Any:
        """A member's document.

        Raises:
            Refusal: It is missing, damaged, too long or nested too deeply.
        """
        text = self.read(name)
        if len(text) > _LONGEST_JSON:
            raise Refusal(f"has {len(text)} bytes", AGAIN_HINT).at(name)
        try:
            return json.loads(text)
        except RecursionError:
            raise Refusal("is nested too deeply", AGAIN_HINT).at(name) from None
        except ValueError as error:
            raise Refusal(f"is no JSON: {error}", AGAIN_HINT).at(name) from None


def _check_size(members: list[zipfile.ZipInfo], size: int) -> None:
    """Nothing is compressed: torch stores, so no content is larger than the file."""
    if len(members) > _MOST_MEMBERS:
        raise Refusal(f"has {len(members)} members, more than {_MOST_MEMBERS}")
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise Refusal("is compressed, which torch does not do: it could unfold to any size", AGAIN_HINT).at(
            shown(packed[0])
        )
    claimed = sum(max(member.file_size, member.compress_size) for member in members)
    if claimed > size:
        raise Refusal(f"claims {claimed} bytes of content in {size} bytes", AGAIN_HINT)
