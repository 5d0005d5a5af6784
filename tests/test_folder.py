from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from deploypruner.errors import InputError
from deploypruner.folder import BuildFolder


@pytest.fixture
def folder(tmp_path: Path) -> BuildFolder:
    made = BuildFolder(tmp_path / "build")
    made.prepare()
    made.write_json("stages/finished.json", {})
    return made


def names(root: Path) -> set[str]:
    return {str(p.relative_to(root)) for p in root.rglob("*")}


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
    folder.prepare()
    assert names(folder.root) == {"stages", "stages/finished.json"}


def test_a_new_build_deletes_its_own_files_only(folder):
    folder.write_text("report.json", "{}")
    folder.write_text("measurements/a.json", "{}")
    (folder.root / ".hidden").write_text("mine")
    folder.clear()
    assert names(folder.root) == {".hidden"}


def test_a_folder_with_foreign_files_is_refused_and_left_alone(folder):
    (folder.root / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"holds files that are not a build's: thesis\.tex"):
        folder.prepare()
    assert (folder.root / "thesis.tex").exists()


def test_files_with_the_names_of_a_build_are_foreign_where_none_was_begun(tmp_path):
    (tmp_path / "model.pt2").write_text("the user's only copy")
    with pytest.raises(InputError, match=r"not a build's: model\.pt2"):
        BuildFolder(tmp_path).prepare()
    assert (tmp_path / "model.pt2").exists()


def test_a_folder_that_only_says_what_is_reachable_may_be_built_in(tmp_path):
    (tmp_path / "reachable.json").write_text("{}")
    BuildFolder(tmp_path).prepare()
    assert names(tmp_path) == {"reachable.json"}


def test_a_linked_sub_folder_is_unlinked_and_its_target_kept(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_text("1")
    (folder.root / "measurements").symlink_to(elsewhere)
    folder.clear()
    assert (elsewhere / "precious").exists()
    assert not folder.path("measurements").exists()


def test_the_folder_owns_what_it_would_delete(folder):
    assert folder.owns(folder.path("model.pt2"))
    assert folder.owns(folder.path("stages") / "deep" / "file")
    assert not folder.owns(folder.root)
    assert not folder.owns(folder.root / "other.pt2")
    assert not folder.owns(folder.root.parent / "model.pt2")


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


def full_disk(*_: object) -> None:
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
