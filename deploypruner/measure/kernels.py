"""The sparse kernels on the machine whose time counts: whether they run there, and as what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploypruner.device.machine import Machine
from deploypruner.errors import InputError, KernelError, MeasureError
from deploypruner.measure.elsewhere import how_to_install
from deploypruner.measure.process import Worker
from deploypruner.records import Artifact
from deploypruner.sparse.custom_ops import uses_sparse_operations
from deploypruner.sparse.library import (
    LibraryNeeds,
    active_target,
    extension_path,
    needs,
    no_fast_target,
    short_version,
    targets,
)

_RUNTIME = "openvino"


@dataclass(frozen=True)
class Kernels:
    """The library as one machine runs it.

    Args:
        library: The file here, which is the same there.
        targets: That the processor runs, best last.
        active: The one that is taken.
    """

    library: Path
    targets: tuple[str, ...]
    active: str

    @property
    def lacking(self) -> str:
        """Why no layer is worth a try, "" where some may be."""
        return no_fast_target() if self.targets == ("scalar",) else ""


def kernels_of(machine: Machine) -> Kernels:
    """The library of this package on a machine; another one is sent it and asked.

    Raises:
        KernelError: It is not built, fits neither that machine nor its OpenVINO, or cannot be loaded there.
        DeviceError: The machine is lost, or has no room for it.
    """
    library = extension_path()
    if machine.device is None:
        return Kernels(library, targets(), active_target())
    require_fit(machine)
    said = machine.asked_once("sparse kernels", lambda: _asked(machine, library))
    return Kernels(library, tuple(said["targets"]), said["active"])


def kernels_or_why(machine: Machine) -> tuple[Kernels | None, str]:
    """The same; where no layer can run in them, None, and why in a phrase.

    Raises:
        DeviceError: As `kernels_of`.
    """
    try:
        found = kernels_of(machine)
    except KernelError as error:
        return None, "; ".join(filter(None, (error.message, error.hint)))
    return (None, found.lacking) if found.lacking else (found, "")


def check_sendable(paths: Sequence[Path], machine: Machine) -> None:
    """Refuse sparse files that another machine cannot run, before anything is timed.

    Raises:
        InputError: One has operations of ours, whose library does not run there; says why.
        DeviceError: As `kernels_of`.
    """
    sparse = next(filter(uses_sparse_operations, paths), None)
    if sparse is None:
        return
    try:
        kernels_of(machine)
    except KernelError as error:
        raise InputError(f"'{sparse}' has sparse operations, and {error.message}", hint=error.hint) from None


def require_fit(machine: Machine) -> LibraryNeeds:
    """What the library needs, all of which the machine has; nothing is sent for that.

    Raises:
        KernelError: It is not built here, or lacks something there.
    """
    needed = needs()
    hint = "measure the dense int8 model there"
    if machine.architecture != needed.architecture:
        raise KernelError(
            f"the sparse kernels here are built for {needed.architecture}, and {machine.name} is "
            f"{machine.architecture or 'something else'}",
            hint=hint,
        )
    name, _, version = machine.libc.partition(" ")
    asked = ".".join(map(str, needed.glibc))
    if name != "glibc" or _numbers(version) < needed.glibc:
        raise KernelError(
            f"the sparse kernels need glibc {asked} or newer, and {machine.name} has {machine.libc or 'none'}",
            hint=f"build the package on a system as old as that one, or {hint}",
        )
    there = machine.version(_RUNTIME)
    if not there or short_version(there) != needed.openvino:
        raise KernelError(
            f"the sparse kernels belong to OpenVINO {needed.openvino}, and {machine.name} has "
            f"{there or 'no OpenVINO'}",
            hint=how_to_install(machine.described, f"{_RUNTIME}=={needed.openvino}"),
        )
    return needed


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _asked(machine: Machine, library: Path) -> dict[str, Any]:
    """What the library says there: {"targets", "active"}."""
    device = machine.device
    assert device is not None, "this machine is asked in this process"
    artifact = Artifact("sparse kernels", library, "onnx", "int8")
    with Worker(artifact, _RUNTIME, threads=1, device=device) as worker:
        try:
            return device.lasting(lambda: worker.ask(do="kernels", kernels=library), again=worker.revive)
        except MeasureError as error:
            raise KernelError(
                f"the sparse kernels do not run on {machine.name}: {error.message}", hint=error.hint
            ) from None
