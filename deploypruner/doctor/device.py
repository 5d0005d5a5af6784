"""Another machine: what it has for measuring, and what it lacks, as it says itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from deploypruner.device.connection import Device
from deploypruner.device.described import DescribedTarget
from deploypruner.device.machine import Machine
from deploypruner.doctor.finding import Finding
from deploypruner.doctor.machine import cores, frequency, int8, load, memory
from deploypruner.errors import KernelError
from deploypruner.figures import scaled
from deploypruner.measure.elsewhere import how_to_install, package_of
from deploypruner.measure.kernels import require_fit
from deploypruner.runtime import default_runtimes, runtimes
from deploypruner.sparse.library import target_for
from deploypruner.target import Target

_WARM_C = 80.0
_LEAST_ROOM = 500_000_000
# Counters that the processor reads by itself, in nanoseconds; the others ask a chip, which takes a microsecond.
_QUICK_CLOCKS = ("tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page")
_ASKED = 5


def device_findings(device: Device, target: DescribedTarget) -> Iterator[Finding]:
    """Connection, processor, int8, cores, frequency, heat, clock, load, memory, disk, Python, runtimes, kernels.

    Args:
        device: The machine, connected.
        target: As it was described.
    """
    yield _connection(device)
    seen = device.details()
    machine, where = seen["environment"], Target(**{k: _frozen(v) for k, v in seen["target"].items()})
    yield _processor(seen)
    yield instruction_sets([*where.int8_features, *where.bf16_features], seen["flags"])
    yield int8(where)
    yield cores(where.cores, seen["all_cores"], None)
    yield core_kinds(seen["kinds"], target.cores)
    yield frequency(machine["frequency_mhz"], machine["governor"])
    yield heat(seen["celsius"])
    yield clock(seen["clock"])
    yield load(machine["busy_cores"], where.cores, machine["load_average_1min"])
    held = seen["memory"]
    if "available" in held:
        yield memory(held["available"], held["total"], None)
    yield swap(held.get("swap_used"))
    yield disk(seen["folder"], seen["free_bytes"])
    yield Finding(
        "python", f"{machine['python']} ({seen['python']}); {machine['os']}", facts={"path": seen["python"]}
    )
    yield from libraries(machine["versions"], target)
    yield sparse_kernels(Machine(device, target))


def instruction_sets(used: Sequence[str], flags: Sequence[str]) -> Finding:
    """What int8 and bf16 kernels use.

    Args:
        used: Of all flags those that the runtimes' kernels depend on.
        flags: All that the processor has.
    """
    kernels = target_for(flags)
    says = ", ".join(used) or "none that int8 or bf16 kernels use"
    ours = f"; the sparse kernels have {kernels} for it" if kernels else ""
    return Finding("instruction sets", says + ours, facts={"flags": list(used), "kernels": kernels})


def core_kinds(kinds: Sequence[Mapping[str, Any]], pinned: Sequence[int]) -> Finding:
    """Big and little cores.

    Args:
        kinds: As `device.cores.core_kinds` gives them.
        pinned: Cores that the target is described with.
    """
    facts = {"kinds": [dict(kind) for kind in kinds], "pinned": list(pinned)}
    if pinned:
        return Finding("core kinds", f"pinned to {_listed(pinned)}, as described", facts=facts)
    if len(kinds) < 2:
        return Finding("core kinds", "all alike", facts=facts)
    says = "; ".join(f"{_listed(kind['cores'])}{_speed(kind)}" for kind in kinds)
    fastest = ", ".join(map(str, kinds[0]["cores"]))
    return Finding(
        "core kinds",
        f"{len(kinds)} kinds: {says}; the fastest are taken first",
        "lack",
        f"say which ones your application runs on: cores = [{fastest}] in targets.toml",
        facts,
    )


def heat(sensors: Mapping[str, float]) -> Finding:
    """The hottest sensor, in degrees Celsius."""
    facts = {"celsius": dict(sensors)}
    if not sensors:
        return Finding("temperature", "no sensor is shown, as in virtual machines", facts=facts)
    name, highest = max(sensors.items(), key=lambda item: item[1])
    says = f"{highest:.0f} degrees Celsius ({name})"
    if highest < _WARM_C:
        return Finding("temperature", says, facts=facts)
    return Finding("temperature", f"{says}: it may slow itself down", "lack", "let it cool, or give it a fan", facts)


def clock(source: str | None) -> Finding:
    """What nanoseconds are read from."""
    facts = {"source": source}
    if source is None:
        return Finding("clock", "the system does not say", facts=facts)
    if source in _QUICK_CLOCKS:
        return Finding("clock", source, facts=facts)
    better = "tsc" if source in ("hpet", "acpi_pm") else "arch_sys_counter"
    hint = f"boot it with clocksource={better}, if it has that"
    return Finding("clock", f"{source}: reading it takes a microsecond or more", "lack", hint, facts)


def swap(used: int | None) -> Finding:
    """Bytes of memory that are on a disk."""
    facts = {"used_bytes": used}
    if not used:
        return Finding("swap", "none in use" if used == 0 else "the system does not say", facts=facts)
    return Finding("swap", f"{scaled(used, 'B')} in use", "lack", "stop other programs, then swapoff -a", facts)


def disk(folder: str, free: int) -> Finding:
    """Room for files, in bytes, where they are kept."""
    says, facts = f"{scaled(free, 'B')} free in {folder}", {"folder": folder, "free_bytes": free}
    if free >= _LEAST_ROOM:
        return Finding("disk", says, facts=facts)
    return Finding("disk", says, "lack", 'free some, or name another disk: folder = "..." in targets.toml', facts)


def libraries(versions: Mapping[str, str | None], target: DescribedTarget) -> Iterator[Finding]:
    """numpy, which is needed, and the runtimes, of which one is."""
    numpy = versions["numpy"]
    yield (
        Finding("numpy", numpy, facts={"version": numpy})
        if numpy
        else Finding("numpy", "not installed", "broken", how_to_install(target, "numpy"), {"version": None})
    )
    wanted = target.runtimes or default_runtimes()
    there = [name for name in wanted if versions.get(package_of(name))]
    for name in wanted:
        package = package_of(name)
        version, facts = versions.get(package), {"version": versions.get(package)}
        if version:
            yield Finding(package, version, facts=facts)
            continue
        state: Any = "lack" if there and not target.runtimes else "broken"
        yield Finding(
            package,
            f"not installed, so nothing is timed in {runtimes.get(name).label}",
            state,
            how_to_install(target, package),
            facts,
        )


def sparse_kernels(machine: Machine) -> Finding:
    """Whether the library that is installed here fits there; it is sent when it is needed."""
    try:
        needed = require_fit(machine)
    except KernelError as error:
        return Finding("sparse kernels", error.message, "lack", error.hint)
    glibc = ".".join(map(str, needed.glibc))
    return Finding(
        "sparse kernels",
        f"those of this machine fit: {needed.architecture}, glibc {glibc} or newer, OpenVINO {needed.openvino}",
    )


def _connection(device: Device) -> Finding:
    each = median(device.round_trip_s() for _ in range(_ASKED))
    return Finding("connection", f"an answer takes {1e3 * each:.1f} ms", facts={"round_trip_s": each})


def _processor(seen: Mapping[str, Any]) -> Finding:
    return Finding("processor", f"{seen['target']['processor']} ({seen['machine']})", facts={"bits": seen["bits"]})


def _speed(kind: Mapping[str, Any]) -> str:
    if kind["khz"]:
        return f" up to {kind['khz'] / 1000:.0f} MHz"
    return f" of capacity {kind['capacity']}" if kind["capacity"] else ""


def _listed(numbers: Sequence[int]) -> str:
    return f"core{'' if len(numbers) == 1 else 's'} {', '.join(map(str, numbers))}"


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
