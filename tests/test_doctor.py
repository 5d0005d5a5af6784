"""`doctor` and `cache`: what is said of a machine, and that only our own files are ever deleted."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from deploypruner import target
from deploypruner.caches import cache_files
from deploypruner.cli import doctor
from deploypruner.doctor import Finding, examine, machine, software, storage
from deploypruner.doctor.software import kernels, runtime
from deploypruner.errors import KernelError
from deploypruner.latency.cache import Cache
from deploypruner.latency.points import Points
from deploypruner.latency.quality import LatencyQuality
from deploypruner.records import Setting
from deploypruner.target import Target
from tests.builds import run_cli

OURS = "latency-openvino-int8-2-0123456789abcdef.json"
KERNELS = "kernels-openvino-int8-1-fedcba9876543210.json"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with two files of ours, one of them damaged, and four things that are not."""
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / OURS).write_text(json.dumps({"device": {"cpu": "Example 9000"}}))
    os.utime(folder / OURS, (time.time() - 7300, time.time() - 7300))
    (folder / KERNELS).write_text("{")
    (folder / "notes.txt").write_text("mine")
    (folder / "latency-mine.json").write_text("{}")
    (folder / KERNELS.replace("kernels", "latency")).mkdir()
    (tmp_path / "elsewhere.json").write_text("{}")
    (folder / OURS.replace("2-0", "3-0")).symlink_to(tmp_path / "elsewhere.json")
    monkeypatch.setenv("DEPLOYPRUNER_CACHE", str(folder))
    return folder


def test_the_cache_lists_what_is_ours_of_which_processor_how_large_and_how_old(kept):
    said = run_cli("cache", "list")
    damaged, whole = said.out.splitlines()
    for part in ("rates of the sparse kernels", "openvino int8, 1 thread ", "damaged", " 1 B", KERNELS):
        assert part in damaged
    for part in ("times of layers", "openvino int8, 2 threads", "Example 9000", "35 B", "2 h old", OURS):
        assert part in whole
    assert f"2 files with 36 bytes in {kept}" in said.err


def test_the_cache_as_json(kept):
    document = json.loads(run_cli("cache", "list", "--json").out)
    assert document["folder"] == str(kept)
    assert [(file["cpu"], file["bytes"], file["damaged"]) for file in document["files"]] == [
        (None, 1, True),
        ("Example 9000", 35, False),
    ]


def test_clearing_deletes_our_files_alone_and_only_where_somebody_said_so(kept):
    run_cli("cache", "clear").assert_error(2, "nobody is there to answer", "add --yes")
    assert (kept / OURS).exists()
    said = run_cli("cache", "clear", "--yes")
    assert "deleted 2 files with 36 bytes" in said.err
    left = {path.name for path in kept.iterdir()}
    assert left == {
        "notes.txt",
        "latency-mine.json",
        KERNELS.replace("kernels", "latency"),
        OURS.replace("2-0", "3-0"),
    }
    assert (kept.parent / "elsewhere.json").exists()
    assert "nothing to delete" in run_cli("cache", "clear", "--yes").err


def test_a_cache_folder_that_is_not_there_is_empty(tmp_path):
    assert cache_files(tmp_path / "none") == []


def test_what_builds_write_is_what_the_cache_lists(tmp_path):
    """The names are made elsewhere."""

    quality = LatencyQuality(error=0.1, probes=7, guessed=0.2)
    Cache(tmp_path, Setting("openvino", "fp32", 3)).write("model", (), quality, Points())
    (found,) = cache_files(tmp_path)
    assert (found.setting, found.cpu) == ("openvino fp32, 3 threads", target.detect().processor)


# ---------------------------------------------------------------------- doctor

BOUNDS = {"avx2": 4 / 3, "avx2 avx512_vnni": 4, "avx2 avx512_vnni amx_int8": 32, "asimddp i8mm": 8, "sse2": None}


@pytest.mark.parametrize("flags", BOUNDS)
def test_the_bound_of_int8_is_that_of_the_instructions_and_called_a_bound(monkeypatch, flags):
    monkeypatch.setattr(target, "_cpuinfo", lambda: {"flags": flags})
    found = machine.int8(target.detect())
    assert found.facts["bound_over_fp32"] == BOUNDS[flags]
    assert ("a bound, not a promise" in found.says) == (BOUNDS[flags] is not None)
    assert found.facts["weight_bits"] == (7 if flags == "avx2" else 8)


def test_a_system_that_does_not_describe_its_processor_is_not_said_to_lack_anything(monkeypatch):
    monkeypatch.setattr(target, "_cpuinfo", dict)
    found = target.detect()
    assert "not known" in found.int8_outlook
    assert "not known" in machine.bf16(found).says
    assert found.int8_bound is None


def test_bf16_by_the_best_instruction_there_is():
    best = machine.bf16(Target("cpu", "A", 2, (), ("avx512_bf16", "amx_bf16")))
    assert best.says.startswith("tiles multiply 16 times")
    assert machine.bf16(Target("cpu", "A", 2, ())).says == "no instructions for it"


LACKS = {
    "governor": (machine.frequency(2100, "powersave"), "2100 MHz now, governor 'powersave'", "cpupower"),
    "load": (machine.load(3.6, 4, 1.5), "use 3.6 of 4 cores now; 1.5 ran", "stop other programs"),
    "memory": (machine.memory(5 * 10**8, 8 * 10**9, None), "500 MB of 8.00 GB free", "close other programs"),
    "container": (machine.cores(8, 16, 1.5), "8 of the machine's 16, of whose time", "--threads 1"),
    "limit": (machine.memory(5 * 10**9, 8 * 10**9, 6 * 10**8), "container may use 600 MB", "close other programs"),
}


@pytest.mark.parametrize("name", LACKS)
def test_what_lacks_has_a_hint(name):
    found, says, hint = LACKS[name]
    assert found.state == "lack"
    assert says in found.says
    assert hint in found.hint


def test_what_is_as_it_should_be_has_none():
    fine = (
        machine.frequency(2100, "performance"),
        machine.frequency(None, None),
        machine.load(0.4, 1, 9.0),
        machine.load(2.9, 4, 3.0),
        machine.memory(3 * 10**9, 8 * 10**9, None),
        machine.cores(4, 4, None),
    )
    assert {(found.state, found.hint) for found in fine} == {("fine", "")}


def test_what_a_control_group_allows(tmp_path):
    (tmp_path / "some").write_text("150000 100000\n")
    (tmp_path / "all").write_text("max 100000\n")
    assert machine.allowance(tmp_path / "some") == 1.5
    assert machine.allowance(tmp_path / "all") is None
    assert machine.allowance(tmp_path / "none") is None


RUNTIMES = {
    "fine": (("onnxruntime", 0, "note\n1.2.3\n", ""), "fine", "1.2.3, loads", ""),
    "missing": (("no-such", 1, "", "ModuleNotFoundError"), "broken", "not installed", "pip install no-such"),
    "fails": (
        ("numpy", 1, "", "Traceback\nImportError: libx.so: no such file\n"),
        "broken",
        "does not load: ImportError: libx.so",
        "pip install --force-reinstall numpy",
    ),
    "crashes": (("numpy", -4, "", ""), "broken", "ends its process with SIGILL", "--force-reinstall"),
    "hangs": (("numpy", None, "", ""), "broken", "did not load within 120 s", "--force-reinstall"),
}


@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_by_how_the_process_ended_that_loaded_it(name):
    arguments, state, says, hint = RUNTIMES[name]
    found = runtime(*arguments)
    assert found.state == state
    assert says in found.says
    assert hint in found.hint


def test_kernels_that_are_not_built_say_why(monkeypatch):
    def missing(name: str) -> Path:
        raise KernelError(f"{name} is not installed", hint="reinstall it")

    monkeypatch.setattr(software, "is_built", lambda: False)
    monkeypatch.setattr(software, "path_of", missing)
    monkeypatch.setattr(software.shutil, "which", lambda name: None)
    found = kernels(loads=True)
    assert found.state == "lack"
    assert "is not installed; there is no C++ compiler here (c++, g++, clang++)" in found.says
    assert found.hint == "install a C++ compiler (apt install g++), then reinstall it"
    monkeypatch.setattr(software.shutil, "which", lambda name: "/usr/bin/c++")
    assert kernels(loads=True).hint == "reinstall it"


def test_a_kernel_target_that_cannot_run_is_broken_for_builds_refuse_it(monkeypatch):
    if not software.is_built():
        pytest.skip("the kernels are not built here")
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "z80")
    found = kernels(loads=True)
    assert found.state == "broken"
    assert "DEPLOYPRUNER_TARGET=z80 cannot run here" in found.says
    assert "this CPU runs scalar" in found.hint


def test_room_on_disks(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 2 * 10**9}))
    found = storage.disk("build folder", tmp_path / "not" / "there", "use --out")
    assert (found.state, found.facts["free_bytes"]) == ("fine", 2 * 10**9)
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 7 * 10**8}))
    found = storage.disk("build folder", tmp_path, "use --out")
    assert (found.state, found.hint) == ("lack", "use --out")
    assert "700 MB free" in found.says


def test_a_damaged_cache_file_is_named_with_what_to_do(kept):
    found = storage.cache(kept)
    assert found.state == "lack"
    assert "2 files" in found.says
    assert found.hint == f"rm {kept / KERNELS}"
    (kept / KERNELS).unlink()
    assert storage.cache(kept).state == "fine"


def examined(*findings: Finding):
    return lambda: iter(findings)


def test_the_command_shows_hints_and_ends_well_where_nothing_is_broken(monkeypatch):
    lack = Finding("load", "two of two", "lack", "stop them")
    monkeypatch.setattr("deploypruner.doctor.examine", examined(Finding("cores", "2"), lack))
    said = run_cli("doctor")
    assert said.code == 0
    assert said.out.splitlines() == [
        "cores            2",
        "load             lack: two of two",
        "                 hint: stop them",
    ]
    assert "all that is needed is there; 1 thing that costs speed or trust" in said.err


def test_the_command_ends_with_an_error_where_something_needed_is_broken(monkeypatch):
    broken = Finding("torch", "not installed", "broken", "pip install torch")
    monkeypatch.setattr("deploypruner.doctor.examine", examined(broken, broken))
    said = run_cli("doctor")
    assert said.code == 2
    assert said.out.count("broken: not installed") == 2
    assert "error: torch: not installed, and 1 more\n\nhint: pip install torch\n" in said.err
    assert json.loads(run_cli("doctor", "--json").out)["state"] == "broken"


@pytest.mark.slow
def test_this_machine():
    """Everything wrong has a hint, JSON holds it all, and the runtimes that the tests use load."""
    found = list(examine())
    assert all(bool(finding.hint) == (finding.state != "fine") for finding in found)
    json.dumps(doctor.document(found))
    topics = {finding.topic: finding for finding in found}
    assert topics["processor"].facts["name"] == target.detect().processor
    assert all(topics[name].facts["loads"] for name in ("onnxruntime", "openvino", "torch"))
    assert topics["kernels"].facts["built"] == software.is_built()


def test_what_lies_in_the_working_folder_is_not_taken_for_what_is_installed(tmp_path, monkeypatch):
    """The README says to install in the folder of the sources, where the package lies without its kernels."""
    (tmp_path / "onnx.py").write_text("raise RuntimeError('not installed')")
    monkeypatch.chdir(tmp_path)
    assert software._ended(software._start("import onnx; print('loads')"))[:2] == (0, "loads\n")


def test_why_a_library_does_not_load_is_its_message_and_not_the_hint_below():
    assert (
        software._last_line("Traceback\nKernelError: it is cut off\n\nhint: reinstall it\n")
        == "KernelError: it is cut off"
    )
