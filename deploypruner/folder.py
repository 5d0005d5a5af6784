"""The build folder: every file appears whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from deploypruner.errors import InputError
from deploypruner.reading import is_utf8, kind_name, read_json, status
from deploypruner.refusals import file_size_limit, refusal, working_folder_exists

# Everything a build may put at the top of its folder; nothing else is ever deleted there.
_OWN = (
    *("report.html", "report.json", "plan.json", "recipe.toml", "manifest.json", "reachable.json"),
    *("model.fp32.onnx", "model.int8.onnx", "model.int8.xml", "model.int8.bin", "model.pt2", "weights.safetensors"),
    *("model.sparse.onnx", "libdeploypruner_openvino.so", "sparsify.json"),
    *("measurements", "stages"),
)
_SCRATCH = ".writing-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
# What is wrong with --out itself; see `refusals` for the rest.
_REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY),
)
# Where a native library fails to write and does not say why, this much free space means a full disk.
_NO_SPACE_BYTES = 1 << 20


class BuildFolder:
    """Files of one build under `root`.

    Args:
        root: The folder; it is made when the first file is written.

    Raises:
        InputError: `root` is a file, or has a name that no folder can have.
    """

    def __init__(self, root: Path) -> None:
        found = status(root, what="--out")
        if found is not None and not stat.S_ISDIR(found.st_mode):
            kind = "a file" if stat.S_ISREG(found.st_mode) else kind_name(found)
            raise InputError(f"--out {root} is {kind}", hint="name a folder, which may be new")
        if not is_utf8(root):
            raise InputError(
                f"--out {root} is not UTF-8, and runtimes could not open what is in it", hint="give it another name"
            )
        self.root = root

    def path(self, name: str) -> Path:
        """Where the file called `name` is or will be."""
        return self.root / name

    def has(self, name: str) -> bool:
        """Has the file called `name` been written?"""
        return self.path(name).is_file()

    def owns(self, path: Path) -> bool:
        """Is `path` one of the files that `clear` would delete?"""
        root, target = self.root.resolve(), path.resolve()
        return target.is_relative_to(root) and target != root and target.relative_to(root).parts[0] in _OWN

    def prepare(self) -> None:
        """Make the folder, check that it can be written to, and sweep up what a killed run left half written.

        Raises:
            InputError: It cannot be made, is not writable, or holds files that are not a build's.
        """
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            foreign = self._foreign()
            if foreign:
                raise InputError(
                    f"--out {self.root} holds files that are not a build's: {', '.join(foreign[:3])}",
                    hint="name a new or empty folder",
                )
            with tempfile.TemporaryFile(dir=self.root):
                pass
            for folder in (self.root, self.path("stages"), self.path("measurements")):
                for left in folder.glob(f"{_SCRATCH}*"):
                    shutil.rmtree(left)

    def _foreign(self) -> list[str]:
        """Files a build did not put there: all of them where no build was ever begun, whatever their names."""
        names = sorted(p.name for p in self.root.iterdir() if not p.name.startswith("."))
        ours = self.path("stages").is_dir() or self.has("manifest.json") or set(names) <= {"reachable.json"}
        return [name for name in names if name not in _OWN] if ours else names

    def clear(self) -> None:
        """Delete an earlier build's own files, and nothing else."""
        with os_errors(self.root):
            for name in _OWN:
                path = self.path(name)
                if path.is_dir() and not path.is_symlink():
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
        with os_errors(final):
            final.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=final.parent, prefix=_SCRATCH) as scratch:
                temporary = Path(scratch) / final.name
                try:
                    yield temporary
                except (RuntimeError, SafetensorError) as error:
                    # Native libraries do not say why they could not write.
                    if shutil.disk_usage(scratch).free < _NO_SPACE_BYTES:
                        raise _no_space(final) from error
                    if file_size_limit() is not None:
                        refused = refusal(OSError(errno.EFBIG, ""), f"write to {final}")
                        raise refused or error from error
                    raise
                for suffix in (*siblings, final.suffix):
                    written = temporary.with_suffix(suffix)
                    with written.open("rb") as file:
                        os.fsync(file.fileno())
                    written.replace(final.with_suffix(suffix))

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with self.writing(name) as path:
            # Bytes of names that are no UTF-8; what this makes of them is right in JSON, and readable elsewhere.
            path.write_text(text, encoding="utf-8", errors="backslashreplace")

    def write_json(self, name: str, document: Any) -> None:
        """Write a JSON file atomically; NaN is a programming error."""
        self.write_text(name, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def read_json(self, name: str) -> Any:
        """Read a JSON file.

        Raises:
            InputError: It is missing or damaged.
        """
        missing = f"{self.root} is not a finished build folder"
        return read_json(self.path(name), what="build", hint="compile again", missing=missing)

    def sha256(self) -> dict[str, str]:
        """Name -> sha256 of every finished file of the build outside stages/, the manifest itself left out."""
        tops = [self.path(name) for name in _OWN if name not in ("stages", "manifest.json")]
        files = sorted(p for top in tops for p in (top, *top.glob("*")) if p.is_file())
        return {str(p.relative_to(self.root)): file_sha256(p) for p in files}


def file_sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write `path` into errors a user can act on.

    Raises:
        InputError: The disk is full, or the path cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise _no_space(path) from error
        if error.errno in _REFUSED and working_folder_exists():
            raise InputError(f"cannot write to {path}: {error.strerror}", hint="choose another --out") from error
        raise refusal(error, f"write to {path}") or error from error


def _no_space(path: Path) -> InputError:
    return InputError(
        f"no space left on the disk while writing {path}",
        hint="free some space and run the same command with --resume; what was finished is kept",
    )
