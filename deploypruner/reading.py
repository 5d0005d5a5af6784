"""Files that somebody else wrote: what they may be is checked before a parser, or all of the memory, meets them."""

from __future__ import annotations

import json
import lzma
import math
import os
import re
import stat
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from deploypruner.errors import InputError, said_by
from deploypruner.ranges import digits
from deploypruner.refusals import refusal, working_folder_exists

_AGAIN = "copy or download it again"
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)
_DOCUMENT_BYTES = 1 << 28
# Far beyond any document of ours, and far below what recursive readers and writers bear.
_DEPTH = 64
_LARGEST_INTEGER = 1 << 64
# Unpacked, an archive may be so many times its size, or so large in any case. Deflate reaches 1000 on zeros.
_RATIO, _SMALL_BYTES = 100, 1 << 28
# What zipfile raises over damaged bytes, beside its own BadZipFile.
ARCHIVE_DAMAGE = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError),
    *(ValueError, OverflowError, RuntimeError, LookupError, OSError),
)


def check_present(path: Path, *, what: str, hint: str = "", native: bool = False, empty: str = _AGAIN) -> None:
    """Check that `path` is a regular file with something in it, and one that could ever be read.

    Args:
        path: As the user wrote it; links are followed.
        what: It was to be: "model", "recipe".
        hint: For a file that is missing; where it was looked for if empty.
        native: Is it opened by a library that takes names in UTF-8 only?
        empty: Hint for a file of 0 bytes.

    Raises:
        InputError: It is missing, a folder, a pipe, a device, empty, not permitted, or larger than the memory.
    """
    found = status(path, what=what)
    if found is None:
        raise InputError(f"no {what} file '{path}'", hint=hint or f"looked in {path.absolute().parent}")
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{what} '{path}' is {kind_name(found)}, not a file", hint="name the file itself")
    if native and not is_utf8(path):
        raise InputError(f"the name of {what} '{path}' is not UTF-8, and runtimes cannot open it", hint="rename it")
    if found.st_size == 0:
        raise InputError(f"{what} file '{path}' is empty (0 bytes)", hint=empty)
    if found.st_size > memory_bytes():
        raise InputError(
            f"{what} file '{path}' has {_gigabytes(found.st_size)}, more than this machine's memory "
            f"({_gigabytes(memory_bytes())})",
            hint="check that it is the right file, or use a larger machine",
        )


def report_file(path: Path) -> Path:
    """The report.json that `path` names: a build folder, or the file itself.

    Raises:
        InputError: There is none.
    """
    found = status(path, what="report")
    folder = found is not None and stat.S_ISDIR(found.st_mode)
    if found is not None and not folder and path.suffix != ".json":
        raise InputError(
            f"'{path}' is no build", hint=f"`deploypruner bench {path}` measures a file; give a build folder"
        )
    file = path / "report.json" if folder else path
    check_present(file, what="report", hint="pass a build folder made by `deploypruner compile`")
    return file


def status(path: Path, *, what: str) -> os.stat_result | None:
    """What the operating system says of `path`, links followed; None where there is nothing.

    Raises:
        InputError: It cannot be looked at: a name too long, links in a circle, no permission.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        if not working_folder_exists():
            raise refusal(error) or error from error
        return None
    except ValueError as error:  # a null character
        raise InputError(f"{what} '{path}' is no file name: {error}", hint="correct the name") from None
    except OSError as error:
        refused = refusal(error, f"look at {what} '{shortened(str(path))}'")
        if refused is None:
            raise
        raise refused from error


def is_utf8(path: Path) -> bool:
    """Can the name be written in UTF-8, as native libraries want it?"""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def kind_name(found: os.stat_result) -> str:
    """ "a named pipe": what something that is no regular file is."""
    return next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "something else")


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """Every folder below, and the names of the folders and of the files in it.

    Links are followed, and none leads into a folder twice. A folder that the caller takes out of the list is not
    entered.

    Raises:
        InputError: A folder cannot be read, and would be left out without a word.
    """
    seen = set()
    for where, folders, files in os.walk(folder, followlinks=True, onerror=refuse_folder):
        found = os.stat(where)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        yield where, folders, files


def refuse_folder(error: OSError) -> NoReturn:
    """Say that a folder cannot be read.

    Raises:
        InputError: Always, unless the mistake is ours.
    """
    raise refusal(error, f"read folder '{error.filename}'") or error


def memory_bytes() -> int:
    """All memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def limit_memory() -> None:
    """Let this process have no more memory than the machine: what asks for more fails, and nobody else is ended."""
    if sys.platform == "win32":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = memory_bytes() if hard == resource.RLIM_INFINITY else min(hard, memory_bytes())
    resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def read_text(path: Path, *, what: str, hint: str = "", missing: str = "") -> str:
    """The text of a document.

    Args:
        path: Of a file.
        what: It is: "recipe".
        hint: For one that is no such document.
        missing: Hint for one that is not there.

    Raises:
        InputError: As `check_present`, or it is too large for a document, or no UTF-8.
    """
    check_present(path, what=what, hint=missing, empty=hint or _AGAIN)
    try:
        with path.open("rb") as file:
            held = file.read(_DOCUMENT_BYTES + 1)
        if len(held) > _DOCUMENT_BYTES:
            raise InputError(f"{what} '{path}' is larger than {_gigabytes(_DOCUMENT_BYTES)}", hint=hint)
        return held.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{what} '{path}' is not UTF-8 text", hint=hint) from error
    except OSError as error:
        raise refusal(error, f"read {what} '{path}'") or error from error


def read_json(path: Path, *, what: str, hint: str, missing: str = "") -> Any:
    """What a JSON file holds; see `read_text` for the arguments.

    Raises:
        InputError: As `read_text`, or it is no JSON, nested too deeply, or holds a number that nothing could hold.
    """
    return parse_json(read_text(path, what=what, hint=hint, missing=missing), name=f"{what} '{path}'", hint=hint)


def parse_json(text: str, *, name: str, hint: str) -> Any:
    """What JSON text holds.

    Args:
        text: All of it.
        name: For messages: "report 'build/report.json'".
        hint: For one that is no such document.

    Raises:
        InputError: As `read_json`.
    """
    try:
        document = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{name} is not valid JSON: {error.msg.lower()} at line {error.lineno}", hint=hint
        ) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{name} is not valid JSON: {_said(error)}", hint=hint) from error
    _check_sound(document, name=name, hint=hint, finite=True)
    return document


def read_toml(path: Path, *, what: str, hint: str, missing: str = "") -> dict[str, Any]:
    """What a TOML file holds; see `read_text` for the arguments. TOML has infinities and NaN.

    Raises:
        InputError: As `read_text`, or it is no TOML, nested too deeply, or holds a number that nothing could hold.
    """
    import tomllib  # which a device with Python 3.9 lacks, and does not need

    text, name = read_text(path, what=what, hint=hint, missing=missing), f"{what} '{path}'"
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line, why = _toml_place(text, str(error))
        raise InputError(f"{path}:{line}: the {what} is not TOML: {shortened(why)}", hint=hint) from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{name} is not TOML: {_said(error)}", hint=hint) from error
    _check_sound(document, name=name, hint=hint, finite=False)
    return document


def _toml_place(text: str, said: str) -> tuple[int, str]:
    """Line of a mistake, and what it is: tomllib says both in one sentence."""
    found = re.fullmatch(
        r"(?P<why>.*) \((?:at line (?P<line>\d+), column (?P<column>\d+)|at end of document)\)", said, re.S
    )
    if found is None:
        return 1, said
    why = found["why"][:1].lower() + found["why"][1:]
    if found["line"] is None:
        return len(text.splitlines()), f"{why} at the end"
    return int(found["line"]), f"{why} at column {found['column']}"


@contextmanager
def open_archive(path: Path, *, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive that does not unpack to more than it could hold.

    Args:
        path: Of a file.
        what: It is: "data".

    Raises:
        InputError: As `check_present`; it is no zip archive, is damaged, or would unpack to far more than its size or
            to more than the memory. So is what reading its members raises inside the block.
    """
    check_present(path, what=what)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_no_bomb(archive, path, what=what)
            yield archive
    except ARCHIVE_DAMAGE as error:
        refused = refusal(error, f"read {what} '{path}'") if isinstance(error, OSError) else None
        if refused is not None:
            raise refused from error
        raise InputError(f"{what} '{path}' is truncated or corrupt: {_said(error)}", hint=_AGAIN) from error


def _check_no_bomb(archive: zipfile.ZipFile, path: Path, *, what: str) -> None:
    packed, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
    if unpacked > max(_RATIO * packed, _SMALL_BYTES) or unpacked > memory_bytes():
        raise InputError(
            f"{what} '{path}' would unpack to {_gigabytes(unpacked)}, {unpacked / packed:.0f} times its size",
            hint="write it without compression if that much is meant",
        )


def _check_sound(document: Any, *, name: str, hint: str, finite: bool) -> None:
    """Bounded depth and numbers, so that what follows may recurse and calculate."""
    level = [document]
    for _ in range(_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
                raise InputError(f"{name} holds a number of {digits(value)} digits", hint=hint)
            elif finite and isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{name} holds a number that is not finite", hint=hint)
        if not below:
            return
        level = below
    raise InputError(f"{name} is nested more than {_DEPTH} levels deep", hint=hint)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _said(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "integer string conversion" in str(error):
        return "it holds a number of more than 4300 digits"
    return shortened(said_by(error))


def shortened(text: str) -> str:
    """The beginning of a text that somebody else wrote, for a message."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
