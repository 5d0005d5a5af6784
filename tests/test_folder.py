from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from deploypruner.build.folder import BuildFolder
from deploypruner.errors import InputError
from deploypruner.locking import this_process
from deploypruner.scratch import scratch


@pytest.fixture
def folder(tmp_path: Path) -> BuildFolder:
    made = BuildFolder(tmp_path / "build")
    made.prepare()
    made.write_json("stages/finished.json", {})
    return made


def names(root: Path) -> set[str]:
    """All there is, but for the lock and the record of what was written."""
    return {str(p.relative_to(root)) for p in root.rglob("*")} - {".deploypruner.lock", "stages/written.json"}


def again(folder: BuildFolder) -> BuildFolder:
    """The folder as the next run finds it."""
    folder.release()
    return BuildFolder(folder.root)


def test_a_file_appears_only_when_its_writer_is_done(folder):
    with folder.writing("model.pt2") as path:
        path.write_bytes(b"half")
        assert not folder.has("model.pt2")
    assert folder.path("model.pt2").read_bytes() == b"half"
    assert names(folder.root) == {"model.pt2", "stages", "stages/finished.json"}


@pytest.mark.parametrize("problem", [ValueError("bug"), KeyboardInterrupt(), InputError("bad", hint="none")])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(folder, problem):
    folder.write_text("report.html", "old")

    def fail() -> None:
        with folder.writing("report.html") as path:
            path.write_text("new")
            raise problem

    with pytest.raises(type(problem)):
        fail()
    assert folder.path("report.html").read_text() == "old"
    assert names(folder.root) == {"report.html", "stages", "stages/finished.json"}


def test_siblings_take_the_name_of_the_file(folder):
    with folder.writing("model.int8.xml", siblings=(".bin",)) as path:
        path.write_text("graph")
        path.with_suffix(".bin").write_text("weights")
    assert folder.path("model.int8.bin").read_text() == "weights"


def test_what_a_killed_run_left_half_written_is_swept_up(folder):
    for place in (folder.root, folder.path("stages")):
        (place / ".writing-abc").mkdir()
        (place / ".writing-abc" / "model.pt2").write_text("half")
    again(folder).prepare()
    assert names(folder.root) == {"stages", "stages/finished.json"}


def test_a_new_build_deletes_its_own_files_only(folder):
    folder.write_text("report.json", "{}")
    folder.write_text("measurements/a.json", "{}")
    (folder.root / ".hidden").write_text("mine")
    folder.clear()
    assert names(folder.root) == {".hidden"}


def test_a_folder_with_foreign_files_is_refused_and_left_alone(folder):
    for name in ("thesis.tex", "stages/mine.txt", "measurements/lab.csv"):
        place = folder.root / name
        place.parent.mkdir(exist_ok=True)
        place.write_text("years of work")
        with pytest.raises(InputError, match=rf"holds files that are not a build's: {name}"):
            again(folder).prepare()
        assert place.read_text() == "years of work"
        place.unlink()


def test_files_with_the_names_of_a_build_are_foreign_where_none_was_begun(tmp_path):
    (tmp_path / "model.pt2").write_text("the user's only copy")
    with pytest.raises(InputError, match=r"not a build's: model\.pt2"):
        BuildFolder(tmp_path).prepare()
    assert (tmp_path / "model.pt2").exists()


def test_a_folder_that_only_says_what_is_reachable_may_be_built_in(tmp_path):
    first = BuildFolder(tmp_path)
    first.prepare()
    first.write_json("reachable.json", {})
    again(first).prepare()
    assert names(tmp_path) == {"reachable.json", "stages"}


def test_sub_folders_with_the_names_of_a_builds_are_the_users(tmp_path):
    for name in ("stages/a.txt", "measurements/b.txt"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=r"not a build's: measurements/b\.txt, stages/a\.txt"):
        BuildFolder(tmp_path).prepare()
    (tmp_path / "manifest.json").write_text('{"deploypruner": "build", "sha256": {"plan.json": ""}}')
    with pytest.raises(InputError, match=r"not a build's: measurements/b\.txt, stages/a\.txt"):
        BuildFolder(tmp_path).prepare()
    assert (tmp_path / "stages" / "a.txt").exists()


@pytest.mark.parametrize("name", ["../precious", "/precious", "stages/../../precious", "notes/a", ""])
def test_a_record_that_somebody_else_wrote_gives_no_right_to_other_files(tmp_path, name):
    root = tmp_path / "build"
    (root / "notes").mkdir(parents=True)
    for place in (tmp_path / "precious", root / "notes" / "a"):
        place.write_text("mine")
    (root / "manifest.json").write_text(json.dumps({"deploypruner": "build", "sha256": {name: "", "plan.json": ""}}))
    (root / "plan.json").write_text("{}")
    folder = BuildFolder(root)
    assert folder.own() == {"manifest.json", "plan.json"}
    folder.clear()
    assert names(tmp_path) == {"build", "build/notes", "build/notes/a", "precious"}


def test_what_another_command_made_is_not_replaced(folder):
    folder.release()
    with pytest.raises(InputError, match="holds the files of a build"):
        BuildFolder(folder.root, "sparsify").prepare()


def test_a_file_that_appears_meanwhile_is_not_replaced(folder):
    folder.path("model.pt2").write_text("mine")
    with pytest.raises(InputError, match=r"model\.pt2 is not a file of the build"):
        folder.write_text("model.pt2", "ours")
    assert folder.path("model.pt2").read_text() == "mine"


def test_every_file_has_the_mode_that_the_umask_says(folder):
    before = os.umask(0o027)
    try:
        with folder.writing("model.int8.xml", siblings=(".bin",)) as path:
            path.write_text("graph")
            path.with_suffix(".bin").write_text("weights")
            path.with_suffix(".bin").chmod(0o600)
        folder.write_json("plan.json", {})
    finally:
        os.umask(before)
    for name in ("model.int8.xml", "model.int8.bin", "plan.json"):
        assert folder.path(name).stat().st_mode & 0o777 == 0o640, name


def test_one_build_at_a_time_and_the_other_is_named(folder):
    with pytest.raises(
        InputError, match=rf"process {os.getpid()} is building in .*build since 2\d\d\d-.*: deploypruner"
    ):
        BuildFolder(folder.root).prepare()
    folder.release()
    assert not (folder.root / ".deploypruner.lock").exists()
    BuildFolder(folder.root).prepare()


@pytest.mark.parametrize("text", ["", "{}", '{"pid": 4194303, "started": 1, "space": "", "command": "", "since": 0}'])
def test_a_lock_that_nobody_holds_is_no_lock(folder, text):
    folder.release()
    (folder.root / ".deploypruner.lock").write_text(text)
    taken = BuildFolder(folder.root)
    taken.prepare()
    assert json.loads((folder.root / ".deploypruner.lock").read_text())["pid"] == os.getpid()


def test_a_lock_of_a_process_that_is_gone_is_taken_over(folder):
    """Something that the killed process started may keep its file open."""
    folder.release()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    path = folder.root / ".deploypruner.lock"
    about = {**asdict(this_process()), "pid": int(gone.stdout), "command": "x", "since": 0}
    reused = {**asdict(this_process()), "started": 7, "command": "x", "since": 0}
    for holder in (about, reused):
        path.write_text(json.dumps(holder))
        with path.open() as kept:
            fcntl.flock(kept, fcntl.LOCK_EX)
            taken = BuildFolder(folder.root)
            taken.prepare()
            assert json.loads(path.read_text())["pid"] == os.getpid()
            taken.release()


def test_scratch_folders_of_killed_runs_are_swept_and_no_others(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    us = this_process()
    left = tmp_path / f"deploypruner-{us.pid}-7-{us.space}-abc"  # the number of a process that is gone
    kept = [
        tmp_path / f"deploypruner-{us.pid}-{us.started}-{us.space}-abc",
        tmp_path / f"deploypruner-{us.pid}-7-1-abc",  # of a container
        tmp_path / "deploypruner-notes",
    ]
    for place in (left, *kept):
        (place / "sub").mkdir(parents=True)
    link = tmp_path / f"deploypruner-{us.pid}-7-{us.space}-link"
    link.symlink_to(kept[2])
    with scratch() as made:
        assert made.is_dir()
        assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in (*kept, link, made))
    assert not made.exists()


def test_a_linked_sub_folder_is_foreign_and_its_target_kept(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.json").write_text("1")
    folder.write_text("measurements/precious.json", "{}")
    shutil.rmtree(folder.root / "measurements")
    (folder.root / "measurements").symlink_to(elsewhere)
    folder.clear()
    assert (elsewhere / "precious.json").exists()
    with pytest.raises(InputError, match="not a build's: measurements"):
        again(folder).prepare()


def test_nothing_that_is_read_may_lie_where_it_would_be_replaced(folder, tmp_path):
    folder.write_text("model.pt2", "")
    (tmp_path / "link").symlink_to(folder.root)
    for read in (folder.path("model.pt2"), folder.path("stages"), folder.root, tmp_path / "link" / "model.pt2"):
        with pytest.raises(InputError, match=r"would replace .*, which this build reads"):
            folder.require_apart(None, read)
    folder.require_apart(None, "", folder.root / "other.pt2", tmp_path / "model.pt2", tmp_path, "pkg.module:factory")


def test_a_file_in_the_way_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(InputError, match="file is a file"):
        BuildFolder(blocker)
    with pytest.raises(InputError, match=r"cannot write to .*file/sub: Not a directory"):
        BuildFolder(blocker / "sub").prepare()


def test_a_place_where_no_folder_can_be_made_is_named():
    with pytest.raises(InputError, match=r"cannot write to /proc/nothing: .*\n\nhint: choose another --out"):
        BuildFolder(Path("/proc/nothing")).prepare()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_named_and_the_old_file_stays(folder, monkeypatch):
    folder.write_text("plan.json", "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*plan\.json[\s\S]*--resume"):
        folder.write_text("plan.json", "new")
    assert folder.path("plan.json").read_text() == "old"
    assert names(folder.root) == {"plan.json", "stages", "stages/finished.json"}


def test_a_library_that_hides_a_full_disk_is_seen_through(folder, monkeypatch):
    def write() -> None:
        with folder.writing("model.int8.xml"):
            raise RuntimeError("Check 'bin_file' failed")

    with pytest.raises(RuntimeError, match="bin_file"):
        write()
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 0}))
    with pytest.raises(RuntimeError, match="bin_file"):  # root may write where nobody else has room
        write()
    monkeypatch.setattr("tempfile.TemporaryFile", full_disk)
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*model\.int8\.xml"):
        write()


def test_any_other_error_of_the_system_is_not_hidden(folder, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EBADF, "bad file descriptor")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="bad file descriptor"):
        folder.write_text("plan.json", "{}")


def test_hashes_cover_the_files_of_the_build_and_no_others(folder):
    folder.write_text("report.html", "page")
    folder.write_text("measurements/a.json", "{}")
    folder.write_text("manifest.json", "{}")
    (folder.root / ".DS_Store").write_text("noise")
    assert folder.sha256() == {
        "measurements/a.json": hashlib.sha256(b"{}").hexdigest(),
        "report.html": hashlib.sha256(b"page").hexdigest(),
    }


def test_json_that_is_missing_or_damaged_is_named(folder):
    with pytest.raises(InputError, match=r"no build file '.*plan\.json'"):
        folder.read_json("plan.json")
    folder.path("plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan\.json' is not valid JSON"):
        folder.read_json("plan.json")


def no_room(monkeypatch, *, at: Path | None = None) -> None:
    """A disk is full: all of it, or the one with this folder."""
    full = type("Usage", (), {"free": 0})
    free = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: full if at is None or Path(path) == at else free(path))
    if at is None:
        monkeypatch.setattr("tempfile.TemporaryFile", full_disk)


def write(folder: BuildFolder, problem: BaseException | None = None) -> None:
    with folder.writing("model.int8.onnx") as path:
        path.write_bytes(b"half")
        if problem is not None:
            raise problem


@pytest.mark.parametrize("problem", [None, ValueError("wire format"), InputError("cannot be quantized", hint="none")])
def test_a_library_that_stops_at_a_full_disk_and_says_nothing_or_something_else_is_seen_through(
    folder, monkeypatch, problem
):
    folder.claim("model.int8.onnx")
    no_room(monkeypatch)
    with pytest.raises(InputError, match=r"no space left on the disk while writing .*build/model\.int8\.onnx"):
        write(folder, problem)
    assert not folder.has("model.int8.onnx")


def test_a_file_that_ends_at_the_limit_on_sizes_may_be_cut_off(folder, monkeypatch):
    folder.claim("model.int8.onnx")
    monkeypatch.setattr("deploypruner.atomic.file_size_limit", lambda: 5)
    write(folder)  # of 4 bytes
    monkeypatch.setattr("deploypruner.atomic.file_size_limit", lambda: 4)
    with pytest.raises(InputError, match=r"cannot write to .*model\.int8\.onnx: file too large[\s\S]*ulimit -f"):
        write(folder)


def test_a_full_disk_of_temporary_files_is_not_taken_for_that_of_the_build(folder, monkeypatch, tmp_path):
    folder.claim("model.int8.onnx")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    no_room(monkeypatch, at=tmp_path / "tmp")
    with pytest.raises(InputError, match=r"while writing temporary files to .*/tmp\n\nhint: set TMPDIR"):
        write(folder, OSError(errno.ENOSPC, "No space left on device"))


def test_a_full_disk_of_a_scratch_folder_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(InputError, match=rf"temporary files to {tmp_path}\n\nhint: set TMPDIR"), scratch():
        full_disk()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EROFS])
def test_a_file_that_cannot_be_renamed_to_is_named(folder, monkeypatch, number):
    """One that is mounted from another disk; a disk that became read-only."""
    folder.claim("model.int8.onnx")

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(InputError, match=rf"cannot write to .*model\.int8\.onnx: {os.strerror(number)}"):
        write(folder)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_the_file_system_has_no_locks_the_lock_file_says_who_builds_and_the_user_is_told(
    tmp_path, monkeypatch, number
):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    folder = BuildFolder(tmp_path / "build")
    folder.prepare()
    assert folder.remark.startswith(f"the file system of {folder.root} has no locks (")
    folder.release()
    path = folder.root / ".deploypruner.lock"
    elsewhere = {**asdict(this_process()), "space": "1", "command": "x", "since": 0}  # on another machine
    path.write_text(json.dumps(elsewhere))
    with pytest.raises(InputError, match=rf"is building in [\s\S]*delete {path} if it has ended"):
        BuildFolder(folder.root).prepare()
    path.write_text(json.dumps({**elsewhere, "space": this_process().space, "started": 7}))  # gone from this one
    again = BuildFolder(folder.root)
    again.prepare()
    assert json.loads(path.read_text())["started"] == this_process().started
    again.release()
    assert BuildFolder(folder.root).remark == ""


def test_processes_of_two_machines_are_told_apart(monkeypatch):
    """Both call their first name space the same."""
    ours = this_process()
    monkeypatch.setattr("platform.node", lambda: "another")
    assert this_process().space != ours.space
