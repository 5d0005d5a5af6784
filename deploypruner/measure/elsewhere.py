"""What another machine can be asked to measure: refused before anything is sent that could not run there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploypruner.device import archive
from deploypruner.device.described import DescribedTarget
from deploypruner.device.machine import Machine
from deploypruner.errors import DeviceError, InputError
from deploypruner.runtime import default_runtimes, measured_runtimes, runtimes

_LIBRARIES = ("openvino", "onnxruntime")


def measurable(target: DescribedTarget, asked: Sequence[str] | None, there: Mapping[str, Any]) -> list[str]:
    """Names of the runtimes to measure on.

    Args:
        target: The machine.
        asked: By the user for this run; where None, those the target is described with, or the default ones it has.
        there: What its `environment` is.

    Raises:
        InputError: One that was asked for is not measured on another machine.
        DeviceError: One that was asked for is not there, or none is.
    """
    named = list(asked or target.runtimes)
    versions = there["versions"]
    for name in named:
        if not archive.holds(runtimes.entry(name).module):
            raise InputError(
                f"{runtimes.get(name).label} is not measured on another machine",
                hint=f"use --runtime {default_runtimes()[0]}, with files that it opens",
            )
    for package in ["numpy", *map(package_of, named)]:
        if versions[package] is None:
            raise DeviceError(f"{target.name} has no {package}", hint=how_to_install(target, package))
    found = named or [name for name in default_runtimes() if versions[package_of(name)] is not None]
    if not found:
        packages = " and no ".join(map(package_of, default_runtimes()))
        raise DeviceError(
            f"{target.name} has no {packages}", hint=how_to_install(target, package_of(default_runtimes()[0]))
        )
    return found


def check_measurable(machine: Machine, asked: Sequence[str]) -> None:
    """Refuse a machine that lacks what a build is to be measured with.

    Raises:
        InputError: As `measurable`.
        DeviceError: As `measurable`, or it cannot multiply in bf16, which is asked for.
    """
    packages = {package_of(name) for name in runtimes} | {"numpy"}
    versions = {"versions": {package: machine.version(package) or None for package in packages}}
    for name in measurable(machine.described, asked, versions):
        if why := runtimes.get(name).lacking(machine.target):
            raise DeviceError(f"{machine.name}: {why}", hint=f"use --runtime {package_of(name)}")


def measured_on(machine: Machine, named: Sequence[str], *, allow_bf16: bool) -> tuple[str, ...]:
    """`measured_runtimes` of a machine: where nobody named one, those of the default ones that it has."""
    there = tuple(name for name in default_runtimes() if machine.version(package_of(name)))
    names = tuple(named) or (there if machine.elsewhere else ())
    return measured_runtimes(names, allow_bf16=allow_bf16, target=machine.target)


def timed_elsewhere(machine: Machine) -> str:
    """Which machine is timed and which one judges, where they are two; "" where they are one."""
    if not machine.elsewhere:
        return ""
    versions = ", ".join(f"{package} {found}" for package in _LIBRARIES if (found := machine.version(package)))
    said = (
        f"timed on {machine.name} ({machine.target.processor}; {versions}), not on this machine; accuracy and "
        "agreement are those of the same files here"
    )
    here = Machine().architecture
    if machine.architecture == here or not machine.version("openvino"):
        return said
    # On Arm it does, in emulation (`benchmarks/arm_kernels.py`): int8 is further from float, which is the same.
    return (
        f"{said}; OpenVINO may compute int8 otherwise on {machine.architecture} than on {here} and lose more: judge "
        "int8 files for it on that machine before they ship"
    )


def package_of(runtime: str) -> str:
    """What pip calls the library of a runtime."""
    return runtimes.get(runtime).in_float32 or runtime


def how_to_install(target: DescribedTarget, package: str) -> str:
    """A command for the machine itself."""
    return f"install it there: {target.python} -m pip install {package}"
