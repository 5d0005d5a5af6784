"""Which processor cores the workers run on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_SYSTEM = Path("/sys/devices/system/cpu")
_STAT = Path("/proc/stat")
_LOOK_S = 0.1
# Time that is nobody's work, or counted elsewhere already: a guest's is in `user`.
_NOT_BUSY = ("idle", "iowait", "steal", "guest", "guest_nice")
_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")


def own_cores() -> list[int]:
    """Cores this process may use, ascending: a container or `taskset` may have given it a part of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cores() -> int:
    """Cores of this process's own, a hyper-thread not counted where its core is."""
    return sum(not _is_second_thread(core) for core in own_cores()) or 1


def core_times() -> dict[int, Mapping[str, float]]:
    """Seconds since boot that each core spent on what, as the kernel calls it; {} where it is not said.

    A core that is switched off is left out.
    """
    if not _STAT.exists():
        return _times_of_psutil()
    ticks = os.sysconf("SC_CLK_TCK")
    found: dict[int, Mapping[str, float]] = {}
    for line in _STAT.read_text().splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name[3:].isdigit():
            found[int(name[3:])] = {field: int(count) / ticks for field, count in zip(_FIELDS, numbers)}
    return found


def busy_seconds(times: Mapping[str, float]) -> float:
    """One core's time that is neither idle nor stolen; a guest's time is in `user` already."""
    # Added up, nothing subtracted: a sum less the idle time, which is far larger, may round to less than before.
    return sum(seconds for field, seconds in times.items() if field not in _NOT_BUSY)


def used_share(seconds: float) -> dict[int, float]:
    """How much each core of the machine is in use, 0 to 1, observed for so long."""
    before, begin = core_times(), time.monotonic()
    time.sleep(seconds)
    after, passed = core_times(), time.monotonic() - begin
    return {
        core: min(1.0, max(0.0, (busy_seconds(after[core]) - busy_seconds(times)) / passed))
        for core, times in before.items()
        if core in after
    }


def pick_cores(threads: int, among: Sequence[int] = ()) -> list[int]:
    """Return up to `threads` cores of this process's own, best first; [] where the system cannot pin.

    Distinct physical cores come before their hyper-threads, faster ones before slower ones, and among
    equals those that are idle now, so that two measurements at once do not share a core.

    Args:
        threads: How many are needed.
        among: Cores that may be taken, in this order whatever they do; all where empty.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    if among:
        return list(among)[:threads]
    busy = used_share(_LOOK_S)

    def rank(core: int) -> tuple[bool, int, int, int]:
        return (_is_second_thread(core), -top_khz(core), int(busy.get(core, 0.0) * 10), core)

    return sorted(own_cores(), key=rank)[:threads]


def top_khz(core: int) -> int:
    """Highest frequency of a core, 0 where the system does not say."""
    return read_number(_SYSTEM / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq") or 0


def core_kinds() -> list[dict[str, object]]:
    """Cores of one kind together, the fastest first: {"cores", "khz", "capacity"}; both numbers 0 where not said."""
    found: dict[tuple[int, int], list[int]] = {}
    for core in own_cores():
        capacity = read_number(_SYSTEM / f"cpu{core}" / "cpu_capacity") or 0
        found.setdefault((capacity, top_khz(core)), []).append(core)
    return [
        {"cores": cores, "khz": khz, "capacity": capacity}
        for (capacity, khz), cores in sorted(found.items(), reverse=True)
    ]


def read_number(path: Path) -> int | None:
    """The whole number in a file of the system, None where there is none that can be read."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _is_second_thread(core: int) -> bool:
    path = _SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list"
    if not path.exists():
        return False
    first = path.read_text().replace("-", ",").split(",")[0]
    return int(first) != core


def _times_of_psutil() -> dict[int, Mapping[str, float]]:
    """Where the kernel has no /proc; a device without psutil says nothing."""
    try:
        import psutil
    except ModuleNotFoundError:
        return {}
    return {core: times._asdict() for core, times in enumerate(psutil.cpu_times(percpu=True))}
