"""The version: that of the git tag, in a checkout, in an archive, and where neither says anything."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import deploypruner as dp
from deploypruner.measure import environment
from deploypruner.sparse import library
from tests.builds import run_cli

ROOT = Path(__file__).parents[1]
# What the build asks for the version, in the folder it builds; the command line of the same package says the same.
_ASK = [sys.executable, "-m", "setuptools_scm"]


def version_of(folder: Path) -> str:
    done = subprocess.run(_ASK, capture_output=True, text=True, cwd=folder, check=True)
    return done.stdout.split()[-1]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A folder with what the version follows from, under no version control."""
    folder = tmp_path / "sources"
    folder.mkdir()
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


def committed(folder: Path) -> Path:
    git(folder, "init")
    git(folder, "add", ".")
    git(folder, "commit", "--message", "first")
    return folder


def test_a_tag_is_the_version_and_what_follows_it_is_on_the_way_to_the_next(sources):
    pytest.importorskip("setuptools_scm")
    git(committed(sources), "tag", "v1.2.3")
    assert version_of(sources) == "1.2.3"
    git(sources, "commit", "--allow-empty", "--message", "second")
    assert re.fullmatch(r"1\.2\.4\.dev1\+g[0-9a-f]+", version_of(sources))


def test_a_checkout_without_tags_goes_on_from_the_last_version_there_was(sources):
    pytest.importorskip("setuptools_scm")
    assert re.fullmatch(r"0\.1\.1\.dev1\+g[0-9a-f]+", version_of(committed(sources)))


def test_an_archive_of_sources_keeps_its_version_without_git(sources):
    pytest.importorskip("setuptools_scm")
    (sources / "PKG-INFO").write_text("Metadata-Version: 2.2\nName: deploypruner\nVersion: 3.2.1\n")
    assert version_of(sources) == "3.2.1"


def test_an_archive_made_by_git_has_the_version_of_its_commit(sources, tmp_path):
    pytest.importorskip("setuptools_scm")
    for name in (".gitattributes", ".git_archival.txt"):
        shutil.copy(ROOT / name, sources)
    git(committed(sources), "tag", "v4.5.6")
    git(sources, "archive", "--prefix", "unpacked/", "--output", str(tmp_path / "a.tar"), "HEAD")
    shutil.unpack_archive(tmp_path / "a.tar", tmp_path)
    assert version_of(tmp_path / "unpacked") == "4.5.6"


def test_bare_sources_fall_back_on_a_version(sources):
    pytest.importorskip("setuptools_scm")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version_of(sources))


def test_the_version_shown_is_that_of_the_installed_package_and_in_every_environment():
    try:
        installed = metadata.version("deploypruner")
    except metadata.PackageNotFoundError:
        installed = "0+not.installed"
    assert dp.__version__ == installed
    assert environment()["versions"]["deploypruner"] == installed
    assert run_cli("--version").out == f"deploypruner {installed}\n"


class Installed:
    """Metadata of a package that was installed from somewhere."""

    version = "1.2.3"

    def __init__(self, origin: dict | None) -> None:
        self.origin = origin

    def read_text(self, name: str) -> str | None:
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "argument"),
    [
        (None, "--no-cache-dir --no-binary deploypruner deploypruner"),
        ({"url": "file:///src/deploy%20pruner", "dir_info": {}}, "'/src/deploy pruner'"),
        ({"url": "file:///src/dp", "dir_info": {"editable": True}}, "-e /src/dp"),
        ({"url": "file:///d/deploypruner-1.2.3.tar.gz", "archive_info": {}}, "/d/deploypruner-1.2.3.tar.gz"),
        (
            {"url": "file:///d/deploypruner-1.2.3-py3-none-any.whl", "archive_info": {}},
            "deploypruner-1.2.3.tar.gz, the sources of that wheel",
        ),
    ],
)
def test_what_builds_the_kernels_names_where_the_package_came_from(monkeypatch, origin, argument):
    monkeypatch.setattr(library.metadata, "distribution", lambda name: Installed(origin))
    assert library.rebuild().endswith(f"C++ compiler: pip install --force-reinstall --no-deps {argument}")
