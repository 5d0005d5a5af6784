"""The build folder: every file appears whole or not at all, and so does what replaces a finished build."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from deploypruner.atomic import ERRORS, SCRATCH, exchange, file_sha256, json_text, os_errors, replacing
from deploypruner.build.register import stage_files
from deploypruner.errors import InputError
from deploypruner.locking import FolderLock
from deploypruner.logbook import LOG
from deploypruner.reading import is_utf8, kind_name, read_json, status

MANIFEST = "manifest.json"
WRITTEN = "stages/written.json"
LOCK = ".deploypruner.lock"


class BuildFolder:
    """Files of one build under `root`.

    What a build writes it records, in `stages/written.json` while it runs and in the manifest at its end. Those files
    are its own; no others are ever deleted or replaced.

    Args:
        root: The folder; it is made when the first file is written.
        kind: What builds there: "build", or the name of another command.
        names: Top-level names of all that may be written there; what the stages of a build declare where None.
        replaces: Folder of a finished build, whose place this one takes once it is finished.
        inner: Name of a folder in it that holds builds of their own, "" for none.

    Raises:
        InputError: `root` is a file, or has a name that no folder can have.
    """

    def __init__(
        self,
        root: Path,
        kind: str = "build",
        *,
        names: Collection[str] | None = None,
        replaces: BuildFolder | None = None,
        inner: str = "",
    ) -> None:
        found = status(root, what="--out")
        if found is not None and not stat.S_ISDIR(found.st_mode):
            other = "a file" if stat.S_ISREG(found.st_mode) else kind_name(found)
            raise InputError(f"--out {root} is {other}", hint="name a folder, which may be new")
        if not is_utf8(root):
            raise InputError(
                f"--out {root} is not UTF-8, and runtimes could not open what is in it", hint="give it another name"
            )
        self.root, self.kind, self.names, self.replaces, self.inner = root, kind, names, replaces, inner
        self._lock = FolderLock(root / LOCK)
        self._own: set[str] | None = None  # None until `prepare`: nothing is recorded

    @property
    def remark(self) -> str:
        """What a user should know about the folder's lock, "" for nothing."""
        return self._lock.remark

    @property
    def final(self) -> Path:
        """Where it will be once it is finished."""
        return self.root if self.replaces is None else self.replaces.root

    def path(self, name: str) -> Path:
        """Where the file called `name` is or will be."""
        return self.root / name

    def has(self, name: str) -> bool:
        """Has the file called `name` been written?"""
        return self.path(name).is_file()

    @property
    def finished(self) -> bool:
        """Does it hold what a command of this kind finished? What is damaged counts."""
        return self.has(MANIFEST) and self._recorded()[0] == self.kind

    def require_finished(self) -> None:
        """Check that it does.

        Raises:
            InputError: It does not.
        """
        if not self.finished:
            raise InputError(f"{self.root} is not a finished build folder", hint="name one that `compile` made")

    def own(self) -> set[str]:
        """Names of the files that a build recorded here as its own."""
        return set(self._own) if self._own is not None else self._recorded()[1]

    def require_apart(self, *sources: str | Path | None) -> None:
        """Check that nothing that is read lies among the files that are going to be replaced.

        Raises:
            InputError: One of `sources` does.
        """
        if self.replaces is not None:
            self.replaces.require_apart(*sources)
        own = {self.path(name).resolve() for name in self.own()}
        root = self.root.resolve()
        for source in sources:
            read = Path(source).resolve() if source else None
            if read is None or not (read == root or read.is_relative_to(root)):
                continue
            if any(path == read or path.is_relative_to(read) for path in own):
                raise InputError(
                    f"--out {self.root} would replace {source}, which this build reads", hint="name a new folder"
                )

    def require_kind(self) -> None:
        """Check that nothing else builds here.

        Raises:
            InputError: Another command does.
        """
        kind, _ = self._recorded()
        if kind not in ("", self.kind):
            raise InputError(f"--out {self.root} holds the files of a {kind}", hint="name a new or empty folder")

    def prepare(self) -> None:
        """Make the folder, lock it, check it, and sweep up what a killed run left half written.

        Raises:
            InputError: It cannot be made, is not writable, holds files that are not a build's, or another process is
                building in it.
        """
        if self._lock.held:
            return
        if self.replaces is not None:
            self.replaces.prepare()
        with os_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(self.root)
            try:
                self._take()
            except BaseException:
                self.release()
                raise

    def _take(self) -> None:
        self.require_kind()
        _, own = self._recorded()
        foreign = list(islice(_foreign(self.root, own, self.inner), 3))
        if foreign:
            raise InputError(
                f"--out {self.root} holds files that are not a build's: {', '.join(foreign)}",
                hint="name a new or empty folder",
            )
        with tempfile.TemporaryFile(dir=self.root):
            pass
        for folder in (self.root, self.path("stages"), self.path("measurements")):
            for left in folder.glob(f"{SCRATCH}*"):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
        self._own = own

    def _recorded(self) -> tuple[str, set[str]]:
        """What built here, and which of the names it recorded may be its own: others are somebody else's doing."""
        kind, recorded = _recorded(self.root)
        if not recorded:
            return kind, recorded
        names = {WRITTEN.split("/")[0], MANIFEST, LOG, *(stage_files() if self.names is None else self.names)}
        return kind, {name for name in recorded if PurePosixPath(name).parts[0] in names}

    def release(self) -> None:
        """Let other processes build here; nothing where the folder was not prepared."""
        with suppress(OSError):
            self._lock.release()
        if self.replaces is not None:
            self.replaces.release()
            with suppress(OSError):  # it holds something
                self.root.rmdir()

    def adopt(self) -> None:
        """Begin with all that the build has made whose place this one takes, which stays as it is.

        The files are linked, not copied, where the file system can: what is written later is renamed into its place
        and leaves the other name alone.
        """
        assert self.replaces is not None, "there is nothing to begin with"
        self.begin_anew()
        for name in sorted(self.replaces.own() - {WRITTEN, LOG}):
            self.borrow(name, self.replaces)

    def borrow(self, name: str, other: BuildFolder) -> None:
        """Take a file of another folder, if it is there, under its name: linked where that goes, else copied."""
        source = other.path(name)
        if not source.is_file():
            return
        with self.writing(name) as path:
            try:
                if name == LOG:  # which is added to
                    shutil.copy2(source, path)
                else:
                    path.hardlink_to(source)
            except OSError:
                shutil.copy2(source, path)

    def put_in_place(self) -> None:
        """Take the place of the finished build that this one replaces, if it replaces one, and delete that one.

        Raises:
            InputError: The folders cannot be renamed; the finished build is where it was.
        """
        old = self.replaces
        if old is None:
            return
        with os_errors(old.root):
            exchange(self.root, old.root)
        self.root, old.root, self.replaces = old.root, self.root, None
        for folder in (self, old):
            folder._lock.moved(folder.root / LOCK)
        old.clear()
        old.release()
        _bring(old.root, self.root)

    def begin_anew(self) -> None:
        """Delete an earlier build's own files but the log, which is added to."""
        self._clear(spare={LOG, WRITTEN} if self.has(LOG) else set())

    def clear(self) -> None:
        """Delete an earlier build's own files, and nothing else."""
        self._clear(spare=set())

    def _clear(self, *, spare: set[str]) -> None:
        with os_errors(self.root):
            # The records last: a clearing that is killed leaves nothing that nobody owns. Resume state first: what is
            # left is nothing to go on with.
            for name in sorted(
                self.own() - spare, key=lambda name: (name == WRITTEN, name == MANIFEST, name[:6] != "stages")
            ):
                self.discard(name)
            self._own = self.own() & spare
            if self._own:
                self._record()
            for folder in ("measurements", "points", "stages"):
                if self.path(folder).is_dir() and not any(self.path(folder).iterdir()):
                    self.path(folder).rmdir()

    def discard(self, name: str) -> None:
        """Delete a file where it is the build's own and there."""
        path = self.path(name)
        if name in self.own() and not path.parent.is_symlink():
            with os_errors(path):
                path.unlink(missing_ok=True)

    def claim(self, name: str) -> Path:
        """Record a file that something else is going to write, make its folder, and give its path.

        Raises:
            InputError: There is a file of that name that is not the build's; or nothing can be written.
        """
        path = self.path(name)
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if self._own is not None and name not in self._own:
                self.require_own(name)
                self._own |= {name, WRITTEN}
                self._record()
        return path

    def _record(self) -> None:
        document = {"deploypruner": self.kind, "files": sorted(self.own())}
        with replacing(self.path(WRITTEN)) as temporary:
            temporary.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    def require_own(self, name: str) -> None:
        """Check that a file may be replaced.

        Raises:
            InputError: It is there, and no build recorded it.
        """
        own = self._own if self._own is not None else _recorded(self.root)[1]
        if os.path.lexists(self.path(name)) and name not in own:
            raise InputError(
                f"{self.path(name)} is not a file of the {self.kind} in {self.root}",
                hint="move it elsewhere, or name a new folder",
            )

    @contextmanager
    def writing(self, name: str, *, siblings: tuple[str, ...] = ()) -> Iterator[Path]:
        """Yield a temporary path beside the file called `name`; it takes that name once the block succeeds.

        Args:
            name: File name relative to the folder, sub-folders included.
            siblings: Further suffixes the writer produces beside it (".bin" of an OpenVINO IR).
        """
        for suffix in siblings:
            self.claim(str(Path(name).with_suffix(suffix)))
        self.claim(name)
        with replacing(self.path(name), siblings) as temporary:
            yield temporary

    def write_text(self, name: str, text: str) -> None:
        """Write a text file atomically."""
        with self.writing(name) as path:
            path.write_text(text, encoding="utf-8", errors=ERRORS)

    def write_json(self, name: str, document: Any) -> None:
        """Write a JSON file atomically; NaN is a programming error."""
        self.write_text(name, json_text(document))

    def read_json(self, name: str, *, hint: str = "compile again") -> Any:
        """Read a JSON file.

        Args:
            name: Within the folder.
            hint: For one that is damaged.

        Raises:
            InputError: It is missing or damaged.
        """
        missing = f"{self.root} is not a finished build folder"
        return read_json(self.path(name), what="build", hint=hint, missing=missing)

    def sha256(self) -> dict[str, str]:
        """Name -> sha256 of every finished file of the build outside stages/, the manifest itself left out."""
        left_out = (MANIFEST, LOG)  # which is added to after this
        names = sorted(name for name in self.own() if not name.startswith("stages/") and name not in left_out)
        return {name: file_sha256(self.path(name)) for name in names if self.has(name)}

    def manifest(self) -> dict[str, Any]:
        """What the finished build says of itself; empty where there is none.

        Raises:
            InputError: It is damaged: what it says of the other files is not known any more.
        """
        if not self.has(MANIFEST):
            return {}
        document = read_json(self.path(MANIFEST), what="build", hint="copy the build again, or compile again")
        if not isinstance(document, dict) or not isinstance(document.get("sha256"), dict):
            raise InputError(
                f"build '{self.path(MANIFEST)}' is damaged: it lists no files",
                hint="copy the build again, or compile again",
            )
        return document

    def write_manifest(self, about: dict[str, Any]) -> None:
        """Write the manifest: what made the folder, and the sha256 of its files."""
        self.write_json(MANIFEST, {"deploypruner": self.kind, **about, "sha256": self.sha256()})


def _bring(left: Path, root: Path) -> None:
    """Move what nobody recorded, hidden files of the user's, to the same place in another folder."""
    for folder, _, files in os.walk(left, topdown=False):
        for name in files:
            path = Path(folder, name)
            target = root / path.relative_to(left)
            if not os.path.lexists(target):
                with suppress(OSError):  # then it stays where it is
                    target.parent.mkdir(parents=True, exist_ok=True)
                    path.rename(target)
        with suppress(OSError):  # something stays in it
            os.rmdir(folder)


def _recorded(root: Path) -> tuple[str, set[str]]:
    """What built in a folder, and the files it recorded; "" and none where nothing did."""
    kind, own = "", set[str]()
    for name, field in ((WRITTEN, "files"), (MANIFEST, "sha256")):
        try:
            document = read_json(root / name, what="build", hint="compile again")
        except InputError:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("deploypruner"), str):
            continue
        kind = document["deploypruner"]
        # A record that somebody else wrote names no file outside.
        own |= {name} | {file for file in document.get(field) or () if isinstance(file, str) and _is_inside(file)}
    return kind, own


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and bool(path.parts)


def _foreign(root: Path, own: set[str], inner: str) -> Iterator[str]:
    """Files that no build recorded, hidden ones and a folder of other builds aside; linked folders are files here."""
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        if inner and Path(folder) == root and inner not in links:
            folders[:] = [name for name in folders if name != inner]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in links)
        for name in sorted([*files, *links]):
            found = os.path.relpath(os.path.join(folder, name), root)
            if not name.startswith(".") and found not in own:
                yield found
