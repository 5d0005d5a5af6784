"""The processor, its cores and memory, and who else uses them now."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

import psutil

from deploypruner.doctor.finding import Finding
from deploypruner.measure import environment
from deploypruner.measure.interference import SLACK_CORES
from deploypruner.report.units import scaled
from deploypruner.target import Target, detect

_CGROUP = Path("/sys/fs/cgroup")
# torch and the runtimes take half of it before any model.
_LEAST_MEMORY = 1 << 30
# Products of one bf16 instruction against those of a fused fp32 one, the first that a processor has.
_BF16_GIVES = {
    "amx_bf16": "tiles multiply 16 times as many numbers a cycle as fp32",
    "avx512_bf16": "twice the multiply-adds of fp32, 32 against 16 an instruction",
    "bf16": "4 times the multiply-adds of fp32, 16 against 4 an instruction",
}


def machine_findings() -> Iterator[Finding]:
    """Processor, int8, bf16, cores, frequency, load and memory."""
    target, seen = detect(), environment()
    yield Finding("processor", f"{target.processor} ({platform.machine()})", facts={"name": target.processor})
    yield int8(target)
    yield bf16(target)
    yield cores(target.cores, os.cpu_count() or target.cores, allowance(_CGROUP / "cpu.max"))
    yield frequency(seen["frequency_mhz"], seen["governor"])
    yield load(seen["busy_cores"], target.cores, seen["load_average_1min"])
    memory_now = psutil.virtual_memory()
    yield memory(memory_now.available, memory_now.total, _limit(_CGROUP / "memory.max"))


def int8(target: Target) -> Finding:
    """What int8 can be expected to give, from what the instructions of the processor multiply."""
    facts = {
        "features": list(target.int8_features),
        "bound_over_fp32": target.int8_bound,
        "weight_bits": 7 if target.saturates else 8,
    }
    return Finding("int8", target.int8_outlook, facts=facts)


def bf16(target: Target) -> Finding:
    """Are there products in bf16, and what can they give?"""
    gives = next((text for flag, text in _BF16_GIVES.items() if flag in target.bf16_features), None)
    if gives is None:
        says = "no instructions for it" if target.described else "not known: the system does not say"
    else:
        used = "training may use it (--amp), and OpenVINO what is float (--allow-bf16)"
        says = f"{gives} ({target.bf16_features[0]}): a bound, not a promise; {used}"
    return Finding("bf16", says, facts={"features": list(target.bf16_features)})


def cores(own: int, machine: int, allowed: float | None) -> Finding:
    """Cores this process may use.

    Args:
        own: By its affinity.
        machine: Cores of the machine.
        allowed: Cores' worth of time that a container is given, None for no limit.
    """
    says = f"{own}" if own == machine else f"{own} of the machine's {machine}"
    facts = {"own": own, "machine": machine, "allowed": allowed}
    if allowed is not None and allowed < own:
        return Finding(
            "cores",
            f"{says}, of whose time this container is given {allowed:g} cores' worth: beyond it, it is stopped",
            "lack",
            f"give the container whole cores (docker run --cpuset-cpus), or use --threads {max(1, int(allowed))}",
            facts,
        )
    return Finding("cores", says, facts=facts)


def frequency(mhz: int | None, governor: str | None) -> Finding:
    """How fast the processor runs now, and who decides it."""
    speed = "not shown here" if mhz is None else f"{mhz} MHz now"
    facts = {"mhz": mhz, "governor": governor}
    if governor is None:
        return Finding("frequency", f"{speed}; no governor is shown, as in virtual machines", facts=facts)
    if governor == "performance":
        return Finding("frequency", f"{speed}, governor 'performance'", facts=facts)
    return Finding(
        "frequency",
        f"{speed}, governor '{governor}': it moves while things are timed, and milliseconds with it",
        "lack",
        "sudo cpupower frequency-set -g performance",
        facts,
    )


def load(busy: float, own: int, average: float) -> Finding:
    """Cores that other programs use now, of those this process may use."""
    says = f"other programs use {busy:.1f} of {own} cores now; {average:.1f} ran on average in the last minute"
    facts = {"busy_cores": busy, "load_average_1min": average}
    if busy > SLACK_CORES and busy + 1 > own + SLACK_CORES:
        return Finding("load", says, "lack", "stop other programs before anything is timed", facts)
    return Finding("load", says, facts=facts)


def memory(available: int, total: int, limit: int | None) -> Finding:
    """What is free of the memory, in bytes; `limit` is a container's."""
    says = f"{scaled(available, 'B')} of {scaled(total, 'B')} free"
    facts = {"available_bytes": available, "total_bytes": total, "limit_bytes": limit}
    if limit is not None and limit < total:
        says += f"; this container may use {scaled(limit, 'B')}"
    if min(available, limit or available) < _LEAST_MEMORY:
        return Finding("memory", says, "lack", "close other programs, or use a machine with more memory", facts)
    return Finding("memory", says, facts=facts)


def allowance(path: Path) -> float | None:
    """Cores' worth of time in a file cpu.max of control groups: "150000 100000" is 1.5; None for no limit."""
    fields = _words(path)
    if len(fields) != 2 or fields[0] == "max":
        return None
    return int(fields[0]) / int(fields[1])


def _limit(path: Path) -> int | None:
    fields = _words(path)
    return int(fields[0]) if len(fields) == 1 and fields[0].isdigit() else None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
