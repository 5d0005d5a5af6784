"""The build folder: every file appears whole or not at all."""

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

from deploypruner.errors import InputError

# Everything a build may put at the top of its folder; nothing else is ever deleted there.
_OWN = (
    *("report.html", "report.json", "plan.json", "recipe.toml", "manifest.json"),
    *("model.fp32.onnx", "model.int8.onnx", "model.int8.xml", "model.int8.bin", "model.pt2", "weights.safetensors"),
    *("measurements", "stages"),
)


class BuildFolder:
    """Files of one build under `root`.

    Args:
        root: The folder; it is made when the first file is written.

    Raises:
        InputError: `root` is a file.
    """

    def __init__(self, root: Path) -> None:
        if root.exists() and not root.is_dir():
            raise InputError(f"--out {root} is a file", hint="name a folder, which may be new")
        self.root = root

    def path(self, name: str) -> Path:
        """Where the file called `name` is or will be."""
        return self.root / name

    def has(self, name: str) -> bool:
        """Has the file called `name` been written?"""
        return self.path(name).is_file()

    def prepare(self) -> None:
        """Make the folder and check that it can be written to.

        Raises:
            InputError: It cannot be made, is not writable, or holds files that are not a build's.
        """
        with _os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            foreign = sorted(p.name for p in self.root.iterdir() if p.name not in _OWN and not p.name.startswith("."))
            if foreign:
                raise InputError(
                    f"--out {self.root} holds files that are not a build's: {', '.join(foreign[:3])}",
                    hint="name a new or empty folder",
                )
            with tempfile.TemporaryFile(dir=self.root):
                pass

    def clear(self) -> None:
        """Delete an earlier build's own files, and nothing else."""
        with _os_errors(self.root):
            for name in _OWN:
                path = self.path(name)
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

    @contextmanager
    def writing(self, name: str, *, siblings: tuple[str, ...] = ()) -> Iterator[Path]:
        """Yield a temporary path beside the file called `name`; it takes that name once the block succeeds.

        Args:
            name: File name relative to the folder, sub-folders included.
            siblings: Further suffixes the writer produces beside it (".bin" of an OpenVINO IR).
        """
        final = self.path(name)
        with _os_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=".writing-") as scratch:
                temporary = Path(scratch) / final.name
                yield temporary
                for suffix in (*siblings, final.suffix):
                    written = temporary.with_suffix(suffix)
                    with written.open("rb") as file:
                        os.fsync(file.fileno())
                    written.replace(final.with_suffix(suffix))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8")

    def write_json(self, name: str, document: Any) -> None:
        """Write a JSON file atomically; NaN is a programming error."""
        self.write_text(name, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            InputError: It is missing or damaged.
        """
        path = self.path(name)
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{path} does not exist", hint=f"{self.root} is not a finished build folder") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is damaged: {error}", hint="compile again") from error

    def sha256(self) -> dict[str, str]:
        """Name -> sha256 of every finished file outside stages/."""
        files = sorted(
            p for p in self.root.rglob("*") if p.is_file() and "stages" not in p.relative_to(self.root).parts
        )
        return {str(p.relative_to(self.root)): file_sha256(p) for p in files if p.name != "manifest.json"}


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into errors a user can act on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise InputError(
                f"no space left on the disk while writing {path}",
                hint="free some space and run the same command with --resume; what was finished is kept",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise InputError(f"{path} is not writable: {error.strerror}", hint="choose another --out") from error
        raise
