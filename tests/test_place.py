"""A finished build is never lost: another is made beside it, and takes its place only where that was asked for."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

import deploypruner as dp
from deploypruner import atomic
from deploypruner.build.folder import BuildFolder
from deploypruner.build.place import free_name, place_for
from deploypruner.cli.options import with_option
from deploypruner.errors import InputError
from tests.builds import run_cli


def offer(free: Path) -> str:
    return f"{free} is free"


def made(root: Path, **files: str) -> None:
    """A finished build with these files."""
    folder = BuildFolder(root)
    folder.prepare()
    for name, text in {"plan.json": "old", **files}.items():
        folder.write_text(name, text)
    folder.write_manifest({})
    folder.release()


def contents(root: Path) -> dict[str, str]:
    """Name -> text of all but the records."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(p.relative_to(root)): p.read_text() for p in files if p.name not in ("manifest.json", "written.json")}


@pytest.fixture
def build(tmp_path: Path) -> Path:
    made(tmp_path / "build", **{"report.json": "first", "stages/finished.json": "{}"})
    return tmp_path / "build"


def test_a_finished_build_is_refused_by_name_with_the_next_free_one(build):
    (build.parent / "build-2").mkdir()
    with pytest.raises(InputError, match=r"build holds a finished build, which is kept\n\nhint: .*/build-3 is free"):
        place_for(BuildFolder(build), overwrite=False, offer=offer)
    assert free_name(build) == build.parent / "build-3"


def test_an_unfinished_build_or_none_is_built_in(tmp_path):
    assert place_for(BuildFolder(tmp_path / "new"), overwrite=False, offer=offer).root == tmp_path / "new"
    begun = BuildFolder(tmp_path / "begun")
    begun.prepare()
    begun.write_text("plan.json", "{}")
    begun.release()
    assert place_for(BuildFolder(begun.root), overwrite=True, offer=offer).replaces is None


def test_the_finished_build_is_whole_until_the_new_one_is_finished_and_then_gone(build):
    before = contents(build)
    folder = place_for(BuildFolder(build), overwrite=True, offer=offer)
    assert folder.root == build.with_name("build.new")
    folder.prepare()
    folder.write_text("plan.json", "new")
    folder.write_text("model.onnx", "weights")
    folder.write_manifest({})
    assert contents(build) == {**before, ".deploypruner.lock": contents(build)[".deploypruner.lock"]}
    folder.put_in_place()
    assert folder.root == build
    assert folder.path("plan.json").read_text() == "new"
    with pytest.raises(InputError, match="is building in"):  # until it is released
        BuildFolder(build).prepare()
    folder.release()
    assert contents(build) == {"plan.json": "new", "model.onnx": "weights"}
    assert [path.name for path in build.parent.iterdir()] == ["build"]


def test_a_new_build_that_is_given_up_leaves_the_finished_one_and_what_can_be_gone_on_with(build):
    before = contents(build)
    folder = place_for(BuildFolder(build), overwrite=True, offer=offer)
    folder.prepare()
    folder.release()
    assert [path.name for path in build.parent.iterdir()] == ["build"]
    folder.prepare()
    folder.write_text("plan.json", "half")
    folder.release()
    assert contents(build) == before
    assert contents(build.with_name("build.new")) == {"plan.json": "half"}


def test_hidden_files_of_the_users_move_along(build):
    (build / ".git").mkdir()
    (build / ".git" / "HEAD").write_text("main")
    (build / ".note").write_text("mine")
    folder = place_for(BuildFolder(build), overwrite=True, offer=offer)
    folder.prepare()
    folder.write_text("plan.json", "new")
    folder.put_in_place()
    folder.release()
    assert contents(build) == {"plan.json": "new", ".git/HEAD": "main", ".note": "mine"}
    assert not build.with_name("build.new").exists()


def test_a_folder_of_the_users_with_the_name_beside_is_left_alone(build):
    other = build.with_name("build.new")
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"build\.new holds files that are not a build's: thesis\.tex"):
        place_for(BuildFolder(build), overwrite=True, offer=offer).prepare()
    assert contents(other) == {"thesis.tex": "years of work"}


def test_what_is_adopted_is_changed_on_one_side_only(build):
    folder = place_for(BuildFolder(build), overwrite=False, resume=True, offer=offer)
    folder.prepare()
    folder.adopt()
    assert folder.path("report.json").samefile(build / "report.json")
    folder.write_text("report.json", "second")
    assert (build / "report.json").read_text() == "first"
    folder.put_in_place()
    folder.release()
    assert contents(build) == {"plan.json": "old", "stages/finished.json": "{}", "report.json": "second"}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL])
def test_where_names_cannot_be_exchanged_in_one_step_they_are_in_three(tmp_path, monkeypatch, number):
    class Old:
        def renameat2(self, *_: object) -> int:
            return -1

    monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: Old())
    monkeypatch.setattr(atomic.ctypes, "get_errno", lambda: number)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path) == {"a/file": "b", "b/file": "a"}
    with pytest.raises(FileNotFoundError):
        atomic.exchange(tmp_path / "gone", tmp_path / "b")
    assert contents(tmp_path) == {"a/file": "b", "b/file": "a"}


def test_names_are_exchanged(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert contents(tmp_path) == {"a": "2", "b": "1"}
    with pytest.raises(OSError, match=os.strerror(errno.ENOENT)):
        atomic.exchange(tmp_path / "gone", tmp_path / "b")


def test_a_folder_that_cannot_be_replaced_says_so(build, monkeypatch):
    monkeypatch.chdir(build)
    with pytest.raises(InputError, match="is the working folder"):
        place_for(BuildFolder(Path(".")), overwrite=True, offer=offer)
    monkeypatch.chdir(build.parent)
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    with pytest.raises(InputError, match=r"build is a mount point, .*\n\nhint: .*build/build is free"):
        place_for(BuildFolder(build), overwrite=True, offer=offer)


def test_a_linked_folder_is_replaced_where_it_is(build):
    link = build.with_name("link")
    link.symlink_to(build)
    folder = place_for(BuildFolder(link), overwrite=True, offer=offer)
    folder.prepare()
    folder.write_text("plan.json", "new")
    folder.put_in_place()
    folder.release()
    assert link.is_symlink()
    assert contents(link) == contents(build) == {"plan.json": "new"}


@pytest.mark.parametrize(
    "typed", [("m.pt2", "--out", "a b"), ("m.pt2", "--out=a b"), ("--out", "x", "m.pt2", "--out", "a b"), ("m.pt2",)]
)
def test_the_command_that_is_offered_is_the_one_that_was_typed_with_another_folder(typed):
    assert with_option(("compile", *typed), "--out", "a b-2") == ["compile", "m.pt2", "--out", "a b-2"]


@pytest.mark.parametrize(
    ("kind", "typed"),
    [
        ("build", ("compile", "tiny.pt2", "--macs", "0.5")),
        ("build", ("demo",)),
        ("sparsify", ("sparsify", "tiny.pt2")),
        ("quantize", ("quantize", "tiny.pt2", "--data", "labelled.npz")),
    ],
)
def test_every_command_that_makes_a_folder_keeps_a_finished_one(tmp_path, kind, typed):
    root = tmp_path / "made"
    root.mkdir()
    (root / "manifest.json").write_text(json.dumps({"deploypruner": kind, "sha256": {}}))
    outcome = run_cli(*typed, "--out", str(root))
    outcome.assert_error(2, f"made holds a finished {kind}, which is kept", f"--out {root}-2` leaves it alone")
    assert [path.name for path in root.iterdir()] == ["manifest.json"]


def test_compile_in_python_keeps_a_finished_build(build):
    with pytest.raises(InputError, match=r'pass out=".*build-2", which is free, or overwrite=True'):
        dp.compile("tiny.pt2", macs=0.5, out=build)
