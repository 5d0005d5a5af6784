"""Names and addresses of devices, what is sent to them, and the agent that runs there: without any network."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploypruner.device import archive, bootstrap
from deploypruner.device.connection import Device
from deploypruner.device.cores import pick_cores
from deploypruner.device.described import Address, DescribedTarget, described, described_targets, parse_address
from deploypruner.device.handshake import FORMAT, first_words, hello
from deploypruner.device.machine import Machine
from deploypruner.device.store import Store
from deploypruner.doctor.device import clock, core_kinds, disk, heat, libraries, swap
from deploypruner.errors import InputError, MeasureError, RecipeError
from deploypruner.latency.cache import device as cache_key
from deploypruner.measure.elsewhere import timed_elsewhere
from deploypruner.measure.process import Worker
from deploypruner.recipe.reading import read_recipe
from deploypruner.records import Artifact, Setting
from tests.builds import run_cli

# Answers each line after a while, and notes when it began and ended.
_SLOW = """
import json, sys, time
for line in sys.stdin:
    with open(sys.argv[1], "a") as log:
        log.write("begin " + sys.argv[2] + "\\n")
    time.sleep(0.05)
    with open(sys.argv[1], "a") as log:
        log.write("end " + sys.argv[2] + "\\n")
    print(json.dumps({"ns": [int(sys.argv[2])], "waited_ns": None}), flush=True)
"""


def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = tmp_path / "deploypruner" / "targets.toml"
    path.parent.mkdir()
    path.write_text(text)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return path


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://pi@board", Address("ssh", "board", "pi")),
        ("ssh://pi@board:2222", Address("ssh", "board", "pi", 2222)),
        ("ssh://Board", Address("ssh", "Board")),
        ("ssh://pi@[fe80::1]:22", Address("ssh", "fe80::1", "pi", 22)),
    ],
)
def test_an_address_says_user_host_and_port(text: str, address: Address) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ssh://", "has no host"),
        ("ssh://pi@", "has no host"),
        ("ssh://pi@board:99999", "port out of range"),
        ("ssh://pi:secret@board", "has a password"),
        ("ssh://pi@board/home", "goes on after the host"),
        ("ssh://-oProxyCommand=evil", "names no user and host"),
        ("shh://pi@board", r"no way to a target called 'shh'[\s\S]*did you mean 'ssh'\?"),
    ],
)
def test_what_is_no_address_is_refused(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_address(text)
    assert caught.value.hint
    assert "secret" not in str(caught.value)


def test_a_target_is_described_once_and_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(
        tmp_path,
        monkeypatch,
        '[pi]\naddress = "ssh://me@board:2222"\npython = "~/venv/bin/python"\nruntimes = ["onnxruntime"]\n'
        'threads = 4\ncores = [4, 5]\nfolder = "/data/x"\nenvironment = { A = "b c" }\n',
    )
    found = described("pi")
    assert (found.address, found.python) == (Address("ssh", "board", "me", 2222), "~/venv/bin/python")
    assert (found.runtimes, found.threads, found.cores) == (("onnxruntime",), 4, (4, 5))
    assert (found.folder, found.environment) == ("/data/x", {"A": "b c"})
    with pytest.raises(RecipeError, match=r"no target called 'po'[\s\S]*did you mean 'pi'\?"):
        described("po")
    outcome = run_cli("target", "list", folder=tmp_path)
    assert outcome.out.splitlines() == [
        "cpu  this machine",
        "pi   ssh://me@board:2222; ~/venv/bin/python; onnxruntime; 4 threads; cores 4, 5; in /data/x; A=b c",
    ]
    (told,) = json.loads(run_cli("target", "list", "--json", folder=tmp_path).out)["targets"]
    assert told["address"]["port"] == 2222


def test_no_file_names_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert described_targets() == {}
    assert described("cpu").address is None


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("[pi]\n", "'pi' has no address"),
        ('[cpu]\naddress = "ssh://a"\n', "the name is taken"),
        ('[pi]\naddress = "ssh://"\n', "has no host"),
        ('[pi]\naddress = "ssh://a"\npyton = "x"\n', r"unknown key 'pyton'[\s\S]*did you mean 'python'\?"),
        ('[pi]\naddress = "ssh://a"\ncores = [-1]\n', r"cores = \[-1\] cannot be used"),
        ('[pi]\naddress = "ssh://a"\ncores = "4"\n', "cores = '4' cannot be used"),
        ('[pi]\naddress = "ssh://a"\nthreads = 0\n', "threads must be at least 1"),
        ('[pi]\naddress = "ssh://a"\nthreads = true\n', "threads = True cannot be used"),
        ('[pi]\naddress = "ssh://a"\nruntimes = ["onnx"]\n', "no runtime called 'onnx'"),
        ('[pi]\naddress = "ssh://a"\nenvironment = { A = 1 }\n', "environment = .* cannot be used"),
        ("pi = 3\n", "'pi' is no table"),
        ("[pi\n", "is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, message: str
) -> None:
    written(tmp_path, monkeypatch, table)
    with pytest.raises(InputError, match=message) as caught:
        described_targets()
    assert "targets.toml" in str(caught.value)
    assert caught.value.hint


def test_a_recipe_takes_a_target_and_what_is_said_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, monkeypatch, '[pi]\naddress = "ssh://board"\nthreads = 4\nruntimes = ["onnxruntime"]\n')
    found = read_recipe(None, {"target": "pi"})
    assert (found.measure.threads, found.measure.runtimes) == (4, ("onnxruntime",))
    assert read_recipe(None, {"target": "pi", "measure": {"threads": 2}}).measure.threads == 2
    assert read_recipe(None, {}).measure.threads == 1
    outcome = run_cli("compile", "m.pt2", "--target", "pii", folder=tmp_path)
    outcome.assert_error(2, "no target called 'pii'", "did you mean 'pi'?")
    run_cli("target", "check", "cpu", folder=tmp_path).assert_error(2, "'cpu' is this machine", "doctor")


def test_tables_of_layers_are_kept_by_hardware_and_not_by_address() -> None:
    setting = Setting("openvino", "int8", 1)
    here = cache_key(setting)
    with Device() as device:
        one = Machine(device, DescribedTarget("pi", Address("ssh", "one")))
        two = Machine(device, DescribedTarget("ssh://two", Address("ssh", "two")))
        assert cache_key(setting, one) == cache_key(setting, two) == here
        pinned = Machine(device, DescribedTarget("pi", Address("ssh", "one"), cores=(1,)))
        assert cache_key(setting, pinned) != here
        assert (one.target.name, one.target.processor) == ("pi", here["cpu"])


# ---------------------------------------------------------------------- what is sent


def test_what_is_sent_keeps_to_python_3_9() -> None:
    for name, text in archive.sources().items():
        tree = ast.parse(text, name, feature_version=(3, 9))
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Match), name
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                strict = any(keyword.arg == "strict" for keyword in node.keywords)
                assert not (node.func.id == "zip" and strict), f"{name}:{node.lineno}"
                either = any(isinstance(argument, ast.BinOp) for argument in node.args[1:])
                assert not (node.func.id == "isinstance" and either), f"{name}:{node.lineno}"


def test_what_is_sent_is_the_packages_own_code_without_torch() -> None:
    root = Path(archive.__file__).parents[2]
    with zipfile.ZipFile(BytesIO(archive.archive())) as file:
        names = file.namelist()
        worker = file.read("deploypruner/measure/worker.py")
    assert worker == (root / "deploypruner/measure/worker.py").read_bytes()
    assert "deploypruner/runtime/on_onnxruntime.py" in names
    assert not {"deploypruner/runtime/on_torch.py", "deploypruner/onnx_file.py", "deploypruner/api.py"} & {*names}
    assert archive.digest() == hashlib.sha256(archive.archive()).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("python", ["python3.9", "python3.10", sys.executable])
def test_the_archive_runs_without_any_package(tmp_path: Path, python: str) -> None:
    program = shutil.which(python)
    done = program and subprocess.run([program, "--version"], capture_output=True, check=False)
    if not done or done.returncode:
        pytest.skip(f"there is no {python} here")
    (tmp_path / "w.pyz").write_bytes(archive.archive())
    command = [program, "-S", tmp_path / "w.pyz", "agent", tmp_path]
    told = subprocess.run(
        command, input=b'{"do": "environment"}\n', capture_output=True, check=True, env={"PATH": os.environ["PATH"]}
    )
    first, second = told.stdout.splitlines()
    assert first_words(first)["agent"] == FORMAT
    machine = json.loads(second)["told"]
    assert (machine["versions"]["numpy"], machine["cores"]) == (None, len(os.sched_getaffinity(0)))


def test_what_a_shell_prints_is_told_from_our_first_line() -> None:
    assert first_words(b"Welcome!") is None
    assert first_words(hello({"agent": 1}).strip()) == {"agent": 1}
    assert first_words(b"no newline at the end" + hello({"agent": 1}).strip()) == {"agent": 1}


# ---------------------------------------------------------------------- the store


def put(store: Store, name: str, data: bytes, *, digest: str = "d", last: bool = True, sha: str | None = None) -> str:
    sha = sha or hashlib.sha256(data).hexdigest()
    told = store.expect({"digest": digest, "name": name, "bytes": len(data), "sha256": sha, "last": last})
    for start in range(0, len(data), 3):
        assert told is None
        told = store.take(data[start : start + 3])
    assert told is not None
    return str(told["why"])


def test_files_that_belong_together_are_there_at_once_or_not_at_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert put(store, "m.xml", b"abcdefgh", last=False) == ""
    assert store.has("d") is None
    assert put(store, "m.bin", b"") == ""
    assert sorted(path.name for path in Path(str(store.has("d"))).iterdir()) == ["m.bin", "m.xml"]
    assert put(store, "m.onnx", b"abc", digest="e", sha="0" * 64) == "it arrived damaged"
    assert store.has("e") is None


def test_cleaning_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = Store(tmp_path / "kept")
    put(store, "m.onnx", b"abc")
    (store.folder / "worker-1234.pyz").write_bytes(b"12345")
    (store.folder / "mine.txt").write_text("not yours")
    assert store.clean() == {"bytes": 8, "why": ""}
    assert [path.name for path in store.folder.iterdir()] == ["mine.txt"]
    (store.folder / "mine.txt").unlink()
    assert store.clean() == {"bytes": 0, "why": ""}
    assert not store.folder.exists()


def test_a_folder_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bootstrap.place(str(tmp_path / "new")) == ""
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr(os, "getuid", lambda: os.geteuid() + 1)
    assert "belongs to somebody else" in bootstrap.place(str(tmp_path / "new"))
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    assert bootstrap.place(str(tmp_path / "file" / "x")) == os.strerror(errno.ENOTDIR)


# ---------------------------------------------------------------------- the agent


def worker(device: Device, log: Path, number: int) -> Worker:
    artifact = Artifact(f"m{number}", Path("m.onnx"), "onnx", "fp32")
    command = [sys.executable, "-c", _SLOW, str(log), str(number)]
    return Worker(artifact, "onnxruntime", threads=1, device=device, command=command)


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_round_is_run_in_its_order_and_never_two_at_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Device() as device:
        workers = [worker(device, log, number) for number in range(3)]
        for order in ([2, 0, 1], [1, 2, 0]):
            log.write_text("")
            device.tell_round([workers[number].block_message(1) for number in order])
            assert [workers[number].block(1) for number in order] == [[number] for number in order]
            assert log.read_text() == "".join(f"begin {number}\nend {number}\n" for number in order)
            (ended,) = device.take_rounds()
            assert ended["after"]["at_s"] == device.reading().at_s
        os.kill(workers[0].pid, signal.SIGKILL)
        device.tell_round([w.block_message(1) for w in workers])
        with pytest.raises(MeasureError, match=r"'m0' on onnxruntime: the worker process ended \(SIGKILL\)"):
            workers[0].block(1)
        assert [workers[1].block(1), workers[2].block(1)] == [[1], [2]]


@pytest.mark.slow
def test_an_agent_that_hears_nothing_for_long_ends_with_its_workers(tmp_path: Path) -> None:
    with Device() as device:
        one = worker(device, tmp_path / "log", 1)
        (agent,) = psutil.Process().children()
        pid = one.pid
        device.stream.send(b'{"do": "alive", "silence_s": 0.3}\n')
        assert gone(pid)
        assert gone(agent.pid)


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.0, 1.0])
def test_a_worker_ends_with_an_agent_that_is_killed_as_it_starts_or_in_a_call(after_s: float) -> None:
    artifact = Artifact("m", Path("m.onnx"), "onnx", "fp32")
    busy = "from deploypruner.measure.worker import serve; serve(lambda message: __import__('time').sleep(600))"
    with Device() as device:
        one = Worker(artifact, "onnxruntime", threads=1, device=device, command=[sys.executable, "-c", busy])
        (agent,) = psutil.Process().children()
        pid = one.pid
        one.tell(do="block", calls=1)
        time.sleep(after_s)
        agent.kill()
        assert gone(pid)


@pytest.mark.slow
def test_a_worker_that_cannot_be_started_says_so() -> None:
    artifact = Artifact("m", Path("m.onnx"), "onnx", "fp32")
    with Worker(artifact, "onnxruntime", threads=1, command=["/no/such/program"]) as one:
        assert one.pid == 0
        with pytest.raises(MeasureError, match="it could not be started: No such file"):
            one.ask(do="load", runtime="onnxruntime")


def test_cores_that_are_named_are_taken_in_their_order() -> None:
    assert pick_cores(2, [5, 4, 7]) == [5, 4]


# ---------------------------------------------------------------------- what a check says


def test_each_lack_of_a_device_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, monkeypatch, '[pi]\naddress = "ssh://board"\npython = "py"\n')
    target = described("pi")
    kinds = [{"cores": [4, 5], "khz": 2_400_000, "capacity": 1024}, {"cores": [0, 1], "khz": 0, "capacity": 400}]
    big = core_kinds(kinds, ())
    assert big.says.startswith("2 kinds: cores 4, 5 up to 2400 MHz; cores 0, 1 of capacity 400")
    assert "cores = [4, 5]" in big.hint
    assert core_kinds(kinds, (4, 5)).state == core_kinds(kinds[:1], ()).state == "fine"
    found = [big, heat({"zone0": 85.0}), clock("hpet"), swap(5_000_000), disk("/x", 1000)]
    found += [*libraries({"numpy": None, "openvino": None, "onnxruntime": "1.2"}, target)]
    assert [one.state for one in found] == ["lack"] * 5 + ["broken", "fine", "lack"]
    assert all(one.hint for one in found if one.state != "fine")
    assert found[5].hint == "install it there: py -m pip install numpy"
    fine = [heat({"zone0": 50.0}), heat({}), clock("tsc"), clock(None), swap(0), swap(None), disk("/x", 10**10)]
    assert {one.state for one in fine} == {"fine"}
    none = [*libraries({"numpy": "2", "openvino": None, "onnxruntime": None}, target)]
    assert [one.state for one in none] == ["fine", "broken", "broken"]


class OnBoard(Machine):
    """Another machine, of which nobody needs to be asked."""

    elsewhere = True

    def __init__(self, architecture: str, **versions: str) -> None:
        super().__init__(described=DescribedTarget("board"))
        self.said = {**Machine()._identity, "architecture": architecture, "versions": versions}

    @property
    def _identity(self) -> dict[str, Any]:
        return self.said


def test_int8_in_openvino_on_another_architecture_has_to_be_judged_there() -> None:
    here = Machine().architecture
    judged_here = "accuracy and agreement are those of the same files here"
    assert timed_elsewhere(Machine()) == ""
    assert timed_elsewhere(OnBoard(here, openvino="2026.4.1")).endswith(judged_here)
    assert timed_elsewhere(OnBoard("riscv64", onnxruntime="1.31.1")).endswith(judged_here)
    said = timed_elsewhere(OnBoard("riscv64", openvino="2026.4.1"))
    assert f"OpenVINO may compute int8 otherwise on riscv64 than on {here} and lose more" in said
