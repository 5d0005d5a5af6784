"""What the operating system refuses, and streams and terminals that are not what they should be."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploypruner.cli import main as cli
from deploypruner.refusals import native_refusal, refusal
from deploypruner.terminal import escaped, escaped_lines
from tests.builds import run_cli, workshop

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`python -m deploypruner ...` in the workshop."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    given = {"cwd": workshop(), "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run([sys.executable, "-m", "deploypruner", *arguments], check=False, text=True, **given)


@pytest.mark.parametrize(
    ("number", "said", "hint"),
    [
        (errno.ENOSPC, "no space left while writing a/b", "free some space"),
        (errno.EFBIG, "cannot use 'a/b': file too large", "ulimit -f"),
        (errno.EMFILE, "cannot use 'a/b': too many open files", "ulimit -n"),
        (errno.EACCES, "cannot use 'a/b': permission denied", "permissions"),
        (errno.ENAMETOOLONG, "cannot use 'a/b': file name too long", "shorter"),
        (errno.EROFS, "cannot use 'a/b': read-only file system", "can be written"),
    ],
)
def test_what_the_system_refuses_ends_with_words_and_a_hint(monkeypatch, number, said, hint):
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "a/b")

    monkeypatch.setattr("deploypruner.cli.plan.describe", fails)
    run_cli("plan", "tiny.pt2").assert_error(2, said, hint)


def test_a_mistake_of_ours_is_none_of_the_systems_refusals():
    assert refusal(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert native_refusal(RuntimeError("shape mismatch")) is None


@pytest.mark.parametrize(
    "error",
    [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")],
)
def test_too_little_memory_is_said(monkeypatch, error):
    def fails(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("deploypruner.cli.plan.describe", fails)
    run_cli("plan", "tiny.pt2").assert_error(2, "not enough memory", "close other programs")


def test_a_long_name_for_the_build_is_named():
    run_cli("compile", "tiny.pt2", "--out", "a" * 300).assert_error(2, "file name too long", "shorter name")


def test_a_build_folder_that_no_runtime_could_open_is_refused_before_anything_is_done():
    run_cli("compile", "tiny.pt2", "--out", "caf\udce9").assert_error(2, r"--out caf\udce9 is not UTF-8")


def test_a_working_folder_that_is_gone_is_named(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()

    def leave() -> None:
        os.chdir(gone)
        gone.rmdir()

    done = process("report", "build", preexec_fn=leave)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the working folder does not exist any more\n\nhint: change to a folder")


def test_too_few_open_files_are_said_and_too_low_a_soft_limit_is_raised():
    def limited(hard: int) -> subprocess.CompletedProcess[str]:
        return process("list", "targets", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, hard)))

    done = limited(16)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: only 16 open files are allowed" in done.stderr
    assert "ulimit -n 1024" in done.stderr
    assert limited(512).returncode == 0


def test_closed_streams_are_no_error_and_no_file_gets_their_place():
    done = process("list", "targets", preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
    assert done.returncode == 0


def test_a_character_that_the_terminal_lacks_is_written_out():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = process("report", "größe", env=environment)
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, r"error: no report file 'gr\xf6\xdfe'")


def test_a_reader_of_messages_that_stops_reading_does_not_end_the_work(monkeypatch):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        cli._say("one")
        cli._say("two")
        assert os.readlink(f"/proc/self/fd/{gone.fileno()}") == os.devnull


def test_a_pipe_of_our_own_that_breaks_is_not_taken_for_a_reader_that_has_seen_enough(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("deploypruner.cli.plan.describe", fails)
    monkeypatch.setattr(cli, "reader_is_gone", lambda stream: False)
    with pytest.raises(BrokenPipeError):
        run_cli("plan", "tiny.pt2")


def test_names_are_escaped_on_the_terminal():
    assert escaped("layer1.conv ü 漢") == "layer1.conv ü 漢"
    assert escaped("a\x1b[31mb\nc\u202ed\udcff\x9b") == r"a\x1b[31mb\nc\u202ed\udcff\x9b"
    assert escaped_lines("a\nb\x07") == "a\nb\\x07"
    run_cli("plan", "\x1b[31m.pt2").assert_error(2, r"no model file '\x1b[31m.pt2'")


def test_a_file_that_grows_beyond_the_limit_is_an_error(tmp_path):
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    code = (
        "import sys, pathlib\nfrom deploypruner.build.folder import BuildFolder\n"
        "from deploypruner.cli import main as cli\nsys.argv = ['deploypruner', 'list', 'targets']\n"
        f"cli._described = lambda kind: BuildFolder(pathlib.Path({str(tmp_path)!r})).write_text('a', 'x' * 5000)\n"
        "cli.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 2
    assert "error: cannot write to" in done.stderr
    assert "file too large" in done.stderr
    assert "ulimit -f unlimited" in done.stderr
    assert list(tmp_path.iterdir()) == []
