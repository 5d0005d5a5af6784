"""The sparse kernels on another machine: what is sent, what is measured there and kept, and what does not fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import pytest

from deploypruner.build.sparse_model import make_sparse
from deploypruner.device.connection import Device
from deploypruner.device.described import Address, DescribedTarget
from deploypruner.device.machine import Machine
from deploypruner.doctor.device import sparse_kernels
from deploypruner.errors import InputError, KernelError
from deploypruner.latency import kernel_rates as module
from deploypruner.latency.clock import current_clock, timed_on
from deploypruner.latency.kernel_rates import KernelRates, kernel_rates
from deploypruner.measure import bench
from deploypruner.measure.kernels import check_sendable, kernels_of
from deploypruner.onnx_file import write_onnx
from deploypruner.sparse import library
from deploypruner.sparse.convert import sparsify
from deploypruner.sparse.cost import Rates
from tests.builds import run_cli
from tests.qdq import chain, images
from tests.sshd import WHY_NOT, Sshd

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not library.is_built(), reason="the package was installed without its sparse kernels"),
]
needs_sshd = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)


def sparse_file(folder: Path) -> Path:
    model = sparsify(chain(), every=True).model
    assert model is not None
    write_onnx(model, folder / "m.sparse.onnx")
    return folder / "m.sparse.onnx"


def sent_libraries(device: Sshd) -> list[str]:
    return sorted(path.name for path in device.device.glob("files/*/lib*"))


THREE = ["libdeploypruner_kernels.so", "libdeploypruner_openvino.so", "libdeploypruner_openvino.version"]


@needs_sshd
def test_a_sparse_file_is_timed_there_with_the_library_that_it_needs(device: Sshd, tmp_path: Path) -> None:
    shutil.rmtree(device.device, ignore_errors=True)
    found = bench([sparse_file(tmp_path)], runtimes=["openvino"], budget_s=0.1, target="pi")
    assert found.measured.failures == ()
    assert sent_libraries(device) == THREE
    sizes = [library.path_of(name).stat().st_size for name in THREE]
    assert found.sent_bytes >= sum(sizes)
    assert bench([sparse_file(tmp_path)], runtimes=["openvino"], budget_s=0.1, target="pi").sent_bytes == 0
    outcome = run_cli("bench", "m.sparse.onnx", "--target", "pi", "--seconds", "1", folder=tmp_path)
    assert (outcome.code, "nothing sent" in outcome.err) == (0, True)


@needs_sshd
def test_layers_are_timed_there_and_rates_are_kept_by_hardware_and_library(device: Sshd, tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "m.onnx")
    fitted = KernelRates(Rates(), 0.1, 0.1, 9, 1.5)
    asked: list[Any] = []

    def rates(threads: int, **more: Any) -> KernelRates:
        asked.append((threads, more["device"].transport.name, more["kernels"].active))
        return fitted

    command = ("sparsify", "m.onnx", "--seconds", "1", "--target")
    with mock.patch.object(module, "measured_rates", rates):
        outcome = run_cli(*command, "pi", "--out", "s", folder=tmp_path)
        assert outcome.code == 0, outcome.err
        assert "timing the sparse kernels, once for pi" in outcome.err
        # The same machine by its address: another name, the same hardware.
        device.targets(device.described("board"))
        again = run_cli(*command, "board", "--out", "again", folder=tmp_path)
    assert again.code == 0, again.err
    assert "timing the sparse kernels" not in again.err
    assert asked == [(1, "pi", library.active_target())]
    document = json.loads((tmp_path / "again" / "sparsify.json").read_text())
    assert document["costs"] == "OpenVINO's counters on board"
    assert all(layer["dense_us"] > 0 and layer["sparse_us"] > 0 for layer in document["layers"])
    assert "timed on board (" in again.err + again.out
    assert sent_libraries(device) == THREE


@needs_sshd
def test_rates_are_measured_there_by_the_same_probes(device: Sshd) -> None:
    from tests.test_sparse_rates import CHAINS

    with timed_on("pi") as clock:
        device_of = clock.machine.device
        assert device_of is not None
        found = module.measured_rates(1, CHAINS, kernels=kernels_of(clock.machine), device=device_of)
    assert found.layers == 9
    assert all(rate >= 0 for name, rate in vars(found.rates).items() if name not in ("packed", "source"))


@needs_sshd
def test_a_connection_that_is_cut_while_layers_are_timed_is_taken_up_again(device: Sshd, tmp_path: Path) -> None:
    dense, sparse = tmp_path / "d.onnx", tmp_path / "s.onnx"
    onnx.save(chain(), dense)
    found = sparsify(chain(), every=True)
    assert found.model is not None
    write_onnx(found.model, sparse)
    layers = [choice.layer for choice in found.choices]
    said: list[str] = []
    with timed_on("pi", say=said.append) as clock:
        there = clock.machine.device
        assert there is not None
        send, cuts = there.tell_worker, [1]

        def cut_once(worker: int, message: Mapping[str, Any], patience_s: float) -> None:
            send(worker, message, patience_s)
            if message["do"] == "count" and cuts:
                cuts.pop()
                device.cut()

        with mock.patch.object(there, "tell_worker", cut_once):
            costs = clock.layer_costs(dense, sparse, layers, feeds=[images(1)], threads=1)
    assert set(costs.sparse_ns) == set(costs.dense_ns) == set("abcd")
    assert "pi is back after" in said[-1]


# ---------------------------------------------------------------------- what does not fit


@pytest.fixture
def machine() -> Iterator[Machine]:
    """Another machine by all that is asked of it: this one, in another process."""
    with Device() as device:
        yield Machine(device, DescribedTarget("pi", Address("ssh", "board")))


def pretending(machine: Machine, **said: Any) -> Machine:
    """The same with another answer."""
    machine.__dict__["_there"] = machine._there | said
    return machine


CASES = [
    ({"architecture": "aarch64"}, "are built for x86_64, and pi is aarch64", "dense int8 model there"),
    ({"libc": "glibc 2.17"}, r"need glibc 2\.\d+ or newer, and pi has glibc 2.17", "as old as that one"),
    ({"libc": ""}, r"need glibc 2\.\d+ or newer, and pi has none", "dense int8 model there"),
    ({"versions": {"openvino": "2025.1.0"}}, "belong to OpenVINO .*, and pi has 2025.1.0", "python3 -m pip install"),
    ({"versions": {}}, "belong to OpenVINO .*, and pi has no OpenVINO", "python3 -m pip install openvino=="),
]


@pytest.mark.parametrize(("said", "message", "hint"), CASES)
def test_a_machine_that_the_library_does_not_fit_is_told_without_sending_it(
    machine: Machine, said: Mapping[str, Any], message: str, hint: str
) -> None:
    with mock.patch.object(machine.device, "place") as place:
        with pytest.raises(KernelError, match=message) as caught:
            kernels_of(pretending(machine, **said))
        assert hint in caught.value.hint
        found = sparse_kernels(machine)
        assert (found.state, found.says, found.hint) == ("lack", caught.value.message, caught.value.hint)
        assert not place.called


def test_a_build_for_such_a_machine_stays_dense_and_says_why(machine: Machine, tmp_path: Path) -> None:
    onnx.save(chain(), tmp_path / "d.onnx")
    pretending(machine, architecture="aarch64")
    clock = mock.Mock(machine=machine)
    made = make_sparse(tmp_path / "d.onnx", tmp_path / "s.onnx", feeds=[[images()]], threads=1, clock=clock)
    assert made.check is None
    assert made.document["reason"].startswith("the sparse kernels here are built for x86_64, and pi is aarch64")
    with pytest.raises(InputError, match="has sparse operations, and the sparse kernels here are built for"):
        check_sendable([tmp_path / "d.onnx", sparse_file(tmp_path)], machine)
    check_sendable([tmp_path / "d.onnx"], machine)


def test_a_library_that_does_not_load_there_is_an_error_with_what_was_said(machine: Machine, tmp_path: Path) -> None:
    for name in THREE:
        (tmp_path / name).write_bytes(library.path_of(name).read_bytes())
    damaged = tmp_path / library.KERNELS
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with (
        mock.patch("deploypruner.measure.kernels.extension_path", return_value=tmp_path / library.EXTENSION),
        pytest.raises(KernelError, match=r"the sparse kernels do not run on pi: .* is cut off: it has 5000 bytes"),
    ):
        kernels_of(machine)


def test_kernels_of_another_machine_are_asked_once_and_those_of_this_one_each_time(machine: Machine) -> None:
    here = kernels_of(Machine())
    assert sparse_kernels(machine).says.startswith(f"those of this machine fit: {machine.architecture}, glibc 2.")
    assert kernels_of(machine) == here
    with mock.patch("deploypruner.measure.kernels.Worker", side_effect=AssertionError("asked again")):
        assert kernels_of(machine) == here
    with mock.patch("deploypruner.measure.kernels.targets", return_value=("scalar",)):
        assert kernels_of(Machine()).lacking
        assert not kernels_of(machine).lacking


def test_what_a_target_forces_is_what_is_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOYPRUNER_TARGET", "scalar")
    with Device() as device:
        forced = Machine(device, DescribedTarget("pi", Address("ssh", "board")))
        assert kernels_of(forced).active == "scalar"
        monkeypatch.delenv("DEPLOYPRUNER_TARGET")
        seen: list[str] = []

        def rates(threads: int, **more: Any) -> KernelRates:
            seen.append(more["kernels"].active)
            return KernelRates(Rates(), 0.1, 0.1, 9, 1.5)

        with mock.patch.object(module, "measured_rates", rates):
            first = kernel_rates(1, cache=tmp_path, machine=forced)
            kernel_rates(1, cache=tmp_path)
    assert seen == ["scalar", library.active_target()]
    assert len([*tmp_path.iterdir()]) == 2
    assert first.rates.source == "rates measured on pi"


def test_this_machine_needs_nothing_sent() -> None:
    assert current_clock().machine.device is None
    needed = library.needs()
    assert needed.architecture == Machine().architecture
    assert needed.openvino == library.short_version(Machine().version("openvino"))
    assert (2, 17) <= needed.glibc <= tuple(map(int, Machine().libc.split()[1].split(".")))
