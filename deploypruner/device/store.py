"""Files on the device by what is in them, so that nothing is sent twice."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import IO, Any

Told = dict[str, Any]


class Store:
    """A folder of folders, each named after the digest of what is in it and whole as soon as it is there.

    Args:
        folder: Of the device's own things; made when something is put into it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.expects = 0
        self._message: Told = {}
        self._file: IO[bytes] | None = None
        self._seen = hashlib.sha256()
        self._why = ""

    def has(self, digest: str) -> str | None:
        """The folder with these files; None where they are not there."""
        found = self._place(digest)
        return str(found) if found.is_dir() else None

    def expect(self, message: Told) -> Told | None:
        """Begin to take a file.

        Args:
            message: {"digest": of all that belong together, "name": its place among them, "bytes", "sha256", "last":
                whether it is the last of them}.

        Returns:
            What `take` returns, of an empty file.
        """
        self.expects, self._message = message["bytes"], message
        self._seen, self._why, self._file = hashlib.sha256(), "", None
        path = self._part(message["digest"]) / message["name"]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        except OSError as error:
            self._why = error.strerror or str(error)
        return self.take(b"") if not self.expects else None

    def take(self, some: bytes) -> Told | None:
        """Take bytes of the file; at its end {"why": "" or why it could not be kept}."""
        self.expects -= len(some)
        self._seen.update(some)
        if self._file is not None:
            try:
                self._file.write(some)
                if not self.expects:
                    self._file.close()
            except OSError as error:
                self._why, self._file = error.strerror or str(error), None
        if self.expects:
            return None
        return self._finish()

    def drop(self, digest: str) -> None:
        """Delete one folder of files; what cannot be deleted is left to `clean`."""
        shutil.rmtree(self._place(digest), ignore_errors=True)

    def clean(self) -> Told:
        """Delete what was put here, and the folder if nothing else is in it; {"bytes", "why": "" or what stays}."""
        size, why = 0, ""
        own = [*self.folder.glob("worker-*.pyz*"), *self.folder.glob("files/**/*"), *self.folder.glob("files")]
        for found in sorted(own, reverse=True):
            try:
                if found.is_dir() and not found.is_symlink():
                    found.rmdir()
                else:
                    size += found.lstat().st_size
                    found.unlink()
            except OSError as error:
                why = why or f"{found}: {error.strerror}"
        if not why and not any(self.folder.iterdir()):
            self.folder.rmdir()
        return {"bytes": size, "why": why}

    def _finish(self) -> Told:
        digest = self._message["digest"]
        if not self._why and self._seen.hexdigest() != self._message["sha256"]:
            self._why = "it arrived damaged"
        if not self._why and self._message["last"]:
            try:
                os.rename(self._part(digest), self._place(digest))
            except OSError as error:
                # Another run may have put the same there meanwhile.
                self._why = "" if self._place(digest).is_dir() else error.strerror or str(error)
        if self._why:
            shutil.rmtree(self._part(digest), ignore_errors=True)
        return {"why": self._why}

    def _place(self, digest: str) -> Path:
        return self.folder / "files" / digest

    def _part(self, digest: str) -> Path:
        return self.folder / "files" / f"{digest}.{os.getpid()}"
