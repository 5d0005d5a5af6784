"""Another machine over ssh: a real sshd on the loopback address, started here and gone with the tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import psutil
import pytest

from deploypruner.device import connection
from deploypruner.device.described import described
from deploypruner.device.reach import reach
from deploypruner.device.transports.ssh import SshTransport
from deploypruner.errors import DeviceError, DeviceLostError
from deploypruner.measure import Measured, bench, pair_up, time_artifacts
from tests.builds import run_cli
from tests.sshd import WHY_NOT, Sshd, none_left, remember, running_sshd
from tests.timed import save_conv

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


def python_that(folder: Path, script: str) -> str:
    """A program in place of Python on the device."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_files_are_timed_there_and_nothing_is_sent_twice(device: Sshd, tmp_path: Path) -> None:
    files = [save_conv(tmp_path / "small.onnx", 4), save_conv(tmp_path / "large.onnx", 64)]
    found = bench(files, budget_s=0.3, target="pi")
    assert [(row.runtime, row.name) for row in found.rows] == [
        ("onnxruntime", "small.onnx"),
        ("onnxruntime", "large.onnx"),
        ("openvino", "small.onnx"),
        ("openvino", "large.onnx"),
    ]
    assert [row.verdict for row in found.rows] == ["indistinguishable", "slower"] * 2
    assert found.sent_bytes >= sum(file.stat().st_size for file in files)
    assert found.environment["versions"]["deploypruner"] == found.as_json()["environment"]["versions"]["deploypruner"]
    assert found.measured.conditions.rounds >= 10
    assert bench(files, runtimes=["openvino"], budget_s=0.1, target="pi").sent_bytes == 0
    kept = sorted(path.relative_to(device.device).parts[0] for path in device.device.rglob("*.*"))
    assert set(kept) <= {"files", kept[-1]}
    assert len([*device.device.glob("files/*/large.onnx")]) == 1


def test_weights_beside_a_file_and_inputs_are_sent_with_it(device: Sshd, tmp_path: Path) -> None:
    import numpy as np
    import onnx
    import openvino

    file = save_conv(tmp_path / "m.onnx", 8)
    openvino.save_model(openvino.Core().read_model(file), tmp_path / "m.xml")
    (tmp_path / "sub").mkdir()
    onnx.save(
        onnx.load(file), tmp_path / "e.onnx", save_as_external_data=True, location="sub/w.bin", size_threshold=0
    )
    paths = [tmp_path / "m.xml", tmp_path / "e.onnx"]
    x = np.ones((1, 8, 32, 32), np.float32)
    found = bench(paths, runtimes=["openvino"], budget_s=0.1, feeds=[x], target="pi")
    assert [row.name for row in found.rows] == ["m.xml", "e.onnx"]
    assert found.measured.failures == ()


def test_the_command_says_where_it_was_and_writes_the_same_document(device: Sshd, tmp_path: Path) -> None:
    save_conv(tmp_path / "m.onnx", 4)
    device.targets(device.described(threads=2, cores=[0], runtimes=["onnxruntime"], environment={"A_B": "c d"}))
    command = ("bench", "m.onnx", "--seconds", "1", "--json", "out.json", "--target")
    outcome = run_cli(*command, "pi", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "onnxruntime, 2 threads" in outcome.out
    assert "measured on pi: " in outcome.err
    there = json.loads((tmp_path / "out.json").read_text())
    assert run_cli(*command, "cpu", "--runtime", "onnxruntime", folder=tmp_path).code == 0
    here = json.loads((tmp_path / "out.json").read_text())
    assert there.keys() == here.keys()
    assert there["environment"].keys() == here["environment"].keys()
    assert there["conditions"].keys() == here["conditions"].keys()
    assert (there["settings"]["target"], here["settings"]["target"]) == ("pi", "cpu")


def test_a_check_lists_what_is_there_and_clean_removes_it(device: Sshd, tmp_path: Path) -> None:
    outcome = run_cli("target", "check", "pi", folder=tmp_path)
    assert outcome.code == 0, outcome.err
    topics = {line[:17].strip() for line in outcome.out.splitlines()} - {""}
    assert topics >= {
        "connection",
        "processor",
        "instruction sets",
        "cores",
        "core kinds",
        "frequency",
        "temperature",
    }
    assert topics >= {"clock", "load", "memory", "swap", "disk", "python", "numpy", "openvino", "onnxruntime"}
    document = json.loads(run_cli("target", "check", "pi", "--json", folder=tmp_path).out)
    assert {finding["topic"] for finding in document["findings"]} >= {"disk", "clock"}
    assert [*device.device.glob("worker-*.pyz")]
    outcome = run_cli("target", "clean", "pi", folder=tmp_path)
    assert (outcome.code, "removed" in outcome.err) == (0, True)
    assert not device.device.exists()


# ---------------------------------------------------------------------- what goes wrong on the way


def while_measuring(device: Sshd, tmp_path: Path, act: Callable[[], None]) -> tuple[Measured, list[str]]:
    """What comes of rounds in the midst of which something happens once, and what was said."""
    jobs, said, done = pair_up([save_conv(tmp_path / "m.onnx", 16)], ["onnxruntime"]), list[str](), list[float]()

    def disturb(fraction: float, text: str) -> None:
        done.append(fraction)
        if len(done) == 3:
            act()

    with reach(described("pi"), say=said.append) as connected:
        measured = time_artifacts(
            jobs, budget_s=0.1, min_rounds=10, narrow=1e-9, quantile=0.5, progress=disturb, device=connected
        )
        assert connected.connections == 2
    assert none_left(device)
    return measured, said


def assert_one_round_was_lost(measured: Measured, said: list[str]) -> None:
    assert measured.conditions.losses == 1
    (timing,) = measured.complete()
    assert timing.samples_ns.shape[0] == measured.twin.samples_ns.shape[0] >= 10
    assert (len(said), said[0].endswith("trying again"), "pi is back after" in said[-1]) == (2, True, True)


def test_a_connection_that_is_cut_is_taken_up_again(device: Sshd, tmp_path: Path) -> None:
    measured, said = while_measuring(device, tmp_path, device.cut)
    assert_one_round_was_lost(measured, said)
    assert "the connection was" in said[0]


def test_a_connection_lost_again_while_it_is_taken_up_is_tried_once_more(device: Sshd, tmp_path: Path) -> None:
    transport = SshTransport(described("pi"))
    first = transport.no_agent(255, "", "")
    assert type(first) is DeviceError  # nobody knows whether there is such a machine
    lines = iter([{"known": True}, {"agent": 1}])
    transport.greet(mock.Mock(first_words=lambda: next(lines)))
    with (tmp_path / "log").open("wb") as log:
        process = transport.start(log)
    process.kill()
    process.communicate()
    for again in (transport.no_agent(code, "", "") for code in (255, 137, 0, None)):
        assert isinstance(again, DeviceLostError)
        assert again.hint
    assert "it could not be reached again: Killed" in transport.no_agent(137, "Killed", "").message
    refused = transport.no_agent(255, "Permission denied (publickey).", "")
    assert type(refused) is DeviceError


def test_an_agent_that_is_killed_takes_its_workers_along_and_is_started_anew(device: Sshd, tmp_path: Path) -> None:
    measured, said = while_measuring(device, tmp_path, lambda: os.kill(device.agents()[0], signal.SIGKILL))
    assert_one_round_was_lost(measured, said)
    assert "the measuring process there" in said[0]


def test_a_device_that_stays_away_ends_the_run_after_so_many_tries(
    device: Sshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRY_S", (0.0, 0.0))

    def away() -> None:
        remember(device.folder, device.port, "host", Port="1", ProxyCommand="sh -c 'echo Connection refused >&2'")
        device.cut()

    with pytest.raises(
        DeviceError, match=r"(the connection was closed|nothing listens) there[\s\S]*2 tries in"
    ) as caught:
        while_measuring(device, tmp_path, away)
    assert caught.value.hint
    remember(device.folder, device.port, "host")
    assert none_left(device)


def test_a_host_key_that_changes_on_the_way_is_not_tried_twice(device: Sshd, tmp_path: Path) -> None:
    def change() -> None:
        remember(device.folder, device.port, "other")
        device.cut()

    with pytest.raises(DeviceError, match="the host key has changed"):
        while_measuring(device, tmp_path, change)
    assert none_left(device)


def test_a_worker_that_is_killed_there_is_named_as_here(device: Sshd, tmp_path: Path) -> None:
    paths = [save_conv(tmp_path / f"{name}.onnx", 4) for name in ("one", "two")]
    killed: list[int] = []

    def kill(fraction: float, text: str) -> None:
        if not killed:
            (agent,) = [p for p in device.agents() if "agent" in psutil.Process(p).cmdline()]
            victim = sorted(psutil.Process(agent).children(), key=psutil.Process.create_time)[1]
            killed.append(victim.pid)
            victim.kill()

    with reach(described("pi")) as connected:
        measured = time_artifacts(pair_up(paths, ["onnxruntime"]), budget_s=0.1, progress=kill, device=connected)
    (failure,) = measured.failures
    assert failure.message.startswith("cannot measure 'two.onnx' on onnxruntime: the worker process ended (SIGKILL)")


def test_a_file_that_is_refused_there_is_called_by_its_name_here(device: Sshd, tmp_path: Path) -> None:
    bad, good = save_conv(tmp_path / "bad.onnx", 4), save_conv(tmp_path / "good.onnx", 4)
    bad.write_bytes(bad.read_bytes()[:100])
    (failure,) = bench([good, bad], runtimes=["onnxruntime"], budget_s=0.1, target="pi").measured.failures
    assert f"cannot load '{bad}'" in failure.message


_SLOW_NETWORK = """
import os, queue, socket, sys, threading, time
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
def carry(read, write):
    waiting = queue.Queue()
    def deliver():
        while True:
            at, data = waiting.get()
            time.sleep(max(0, at - time.monotonic()))
            if not data:
                os._exit(0)
            write(data)
    threading.Thread(target=deliver, daemon=True).start()
    while True:
        data = read(65536)
        waiting.put((time.monotonic() + 0.1, data))
        if not data:
            return time.sleep(9)
threading.Thread(target=carry, args=(lambda n: os.read(0, n), link.sendall), daemon=True).start()
carry(link.recv, lambda data: os.write(1, data))
"""


def test_a_network_that_takes_200_ms_is_borne(device: Sshd, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(_SLOW_NETWORK)
    proxy = f"{sys.executable} {tmp_path / 'slow.py'} %h %p"
    remember(device.folder, device.port, "host", ProxyCommand=proxy)
    files = [save_conv(tmp_path / f"{name}.onnx", 4) for name in ("a", "b")]
    with reach(described("pi")) as connected:
        assert connected.round_trip_s() > 0.2
        measured = time_artifacts(
            pair_up(files, ["onnxruntime"]), budget_s=0.1, min_rounds=3, device=connected
        ).complete()
    assert [timing.artifact.name for timing in measured] == ["a.onnx", "b.onnx"]


# ---------------------------------------------------------------------- what is refused before


def assert_refused(device: Sshd, tmp_path: Path, *words: str) -> None:
    run_cli("target", "check", "pi", folder=tmp_path).assert_error(2, *words)
    assert none_left(device)


def test_a_host_key_that_changed_is_refused(device: Sshd, tmp_path: Path) -> None:
    remember(device.folder, device.port, "other")
    assert_refused(device, tmp_path, "the host key has changed", f"ssh-keygen -R '[127.0.0.1]:{device.port}'")


def test_an_unknown_host_key_is_refused_even_where_the_user_would_not_look(device: Sshd, tmp_path: Path) -> None:
    remember(device.folder, device.port, None, StrictHostKeyChecking="no")
    assert_refused(device, tmp_path, "its host key is not known here", f"ssh -p {device.port}")


def test_a_key_that_is_not_let_in_is_named(device: Sshd, tmp_path: Path) -> None:
    remember(device.folder, device.port, "host", IdentityFile=str(device.folder / "other"))
    assert_refused(device, tmp_path, "the login was refused", "ssh-copy-id")
    device.targets(device.described(address=f"ssh://nobody-of-that-name@127.0.0.1:{device.port}"))
    assert_refused(device, tmp_path, "the login was refused", "check the user name")


def test_a_machine_that_is_not_there_is_named(device: Sshd, tmp_path: Path) -> None:
    device.targets(device.described(address="ssh://127.0.0.1:1"))
    assert_refused(device, tmp_path, "nothing listens there", "does sshd run on that port?")
    device.targets(device.described(address="ssh://no-such-host.invalid"))
    assert_refused(device, tmp_path, "there is no such host", "check the name")


def test_a_device_without_python_or_with_an_old_one_is_named(device: Sshd, tmp_path: Path) -> None:
    device.targets(device.described(python="/no/such/python"))
    assert_refused(device, tmp_path, "has no Python called '/no/such/python'", "install Python 3.9 or newer there")
    old = python_that(
        tmp_path,
        f'shift; code=$1; shift; exec {sys.executable} -c "import sys; sys.version_info = (3, 7, 16)\n$code" "$@"',
    )
    device.targets(device.described(python=old))
    assert_refused(device, tmp_path, "has Python 3.7.16", "measuring needs 3.9 or newer", "python = ")


def test_a_32_bit_device_is_refused_before_anything_is_sent(device: Sshd, tmp_path: Path) -> None:
    small = python_that(
        tmp_path,
        f'shift; code=$1; shift; exec {sys.executable} -c "import sys; sys.maxsize = 2**31 - 1\n$code" "$@"',
    )
    device.targets(device.described(python=small, folder=str(tmp_path / "kept")))
    assert_refused(device, tmp_path, "has a 32-bit Python", "neither runtime has packages", "install a 64-bit system")
    assert not (tmp_path / "kept").exists()


def test_a_device_without_numpy_or_a_runtime_is_told_what_to_install(device: Sshd, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "bare"], check=True)
    python = str(tmp_path / "bare" / "bin" / "python")
    device.targets(device.described(python=python))
    save_conv(tmp_path / "m.onnx", 4)
    command = ("bench", "m.onnx", "--target", "pi")
    run_cli(*command, folder=tmp_path).assert_error(2, "pi has no numpy", f"{python} -m pip install numpy")
    outcome = run_cli("target", "check", "pi", folder=tmp_path)
    assert (outcome.code, outcome.out.count("broken: not installed")) == (2, 3)
    assert "error: numpy: not installed, and 2 more" in outcome.err
    assert f"hint: install it there: {python} -m pip install numpy" in outcome.err
    outcome = run_cli(*command, "--runtime", "torch", folder=tmp_path)
    assert (outcome.code, "hint: " in outcome.err) == (2, True)


def test_what_a_login_shell_prints_is_skipped_or_named(tmp_path_factory: pytest.TempPathFactory, monkeypatch) -> None:
    folder = tmp_path_factory.mktemp("banner")
    shell = folder / "shell"
    shell.write_text('#!/bin/sh\nprintf "Welcome to this board\\nunfinished "\nexec sh -c "$SSH_ORIGINAL_COMMAND"\n')
    shell.chmod(0o755)
    with running_sshd(folder, f"ForceCommand {shell}") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        server.targets(server.described())
        file = save_conv(folder / "m.onnx", 4)
        assert len(bench([file], runtimes=["onnxruntime"], budget_s=0.1, target="pi").rows) == 1
        shell.write_text("#!/bin/sh\necho only files are served here\n")
        outcome = run_cli("target", "check", "pi", folder=folder)
        outcome.assert_error(2, "answered the login with 'only files are served here'", "python3 --version")


def test_a_folder_that_cannot_be_used_is_named(device: Sshd, tmp_path: Path) -> None:
    device.targets(device.described(folder="/proc/deploypruner"))
    assert_refused(device, tmp_path, "cannot use the folder '/proc/deploypruner' there", "folder = ")


@pytest.mark.skipif(os.getuid() != 0, reason="root alone gives a folder to somebody else")
def test_a_folder_of_somebody_else_there_is_named_and_left_alone(device: Sshd, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", 65534, 65534)
    device.targets(device.described(folder=str(tmp_path / "theirs")))
    assert_refused(device, tmp_path, "it belongs to somebody else (user id 65534)", "folder = ")
    run_cli("target", "clean", "pi", folder=tmp_path).assert_error(2, "it belongs to somebody else")
    assert [*(tmp_path / "theirs").iterdir()] == []


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="root alone can mount a disk")
def test_a_home_that_cannot_be_written_to_is_named(device: Sshd, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", home]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        device.targets(device.described(environment={"XDG_CACHE_HOME": "", "HOME": str(home)}))
        assert_refused(
            device, tmp_path, f"cannot use the folder '{home}/.cache/deploypruner-device'", "read-only file"
        )
        device.targets(device.described(environment={"HOME": str(home)}, folder=str(tmp_path / "kept")))
        assert run_cli("target", "check", "pi", folder=tmp_path).code == 0
    finally:
        device.cut()
        assert none_left(device)
        subprocess.run(["umount", home], check=True)


def test_what_writes_into_the_protocol_later_is_named(device: Sshd, tmp_path: Path) -> None:
    noisy = tmp_path / "sitecustomize.py"
    noisy.write_text(
        "import os, sys, threading\nif 'agent' in sys.orig_argv:\n    write = os.dup(1)\n"
        "    threading.Timer(2.0, os.write, (write, b'*** update at midnight ***\\n')).start()\n"
    )
    device.targets(device.described(environment={"PYTHONPATH": str(tmp_path)}))
    files = [save_conv(tmp_path / "m.onnx", 64)]
    with pytest.raises(DeviceError, match="something there wrote into the protocol") as caught:
        bench(files, runtimes=["onnxruntime"], budget_s=6, narrow=1e-9, target="pi")
    assert "update at midnight" in caught.value.message
    assert none_left(device)


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="a small disk can be made by root alone")
def test_a_full_disk_there_is_named(device: Sshd, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=160k", "tmpfs", small]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        device.targets(device.described(folder=str(small / "kept")))
        save_conv(tmp_path / "m.onnx", 128)
        outcome = run_cli("bench", "m.onnx", "--target", "pi", folder=tmp_path)
        outcome.assert_error(2, "cannot keep", "no space left on device", "deploypruner target clean pi")
        assert run_cli("target", "clean", "pi", folder=tmp_path).code == 0
        assert [*small.iterdir()] == []
        (small / "filler").write_bytes(b"x" * 120_000)
        outcome = run_cli("bench", "m.onnx", "--target", "pi", folder=tmp_path)
        outcome.assert_error(2, "cannot keep the worker", "no space left on device")
        assert [*(small / "kept").iterdir()] == []
    finally:
        device.cut()
        assert none_left(device)
        subprocess.run(["umount", small], check=True)


def test_a_file_that_is_missing_is_said_before_a_machine_is_asked(device: Sshd, tmp_path: Path) -> None:
    device.targets(device.described(address="ssh://no-such-host.invalid"))
    run_cli("bench", "none.onnx", "--target", "pi", folder=tmp_path).assert_error(2, "no file or folder 'none.onnx'")
