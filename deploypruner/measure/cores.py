"""Which processor cores the workers run on."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_SYSTEM = Path("/sys/devices/system/cpu")
_LOOK_S = 0.1


def own_cores() -> list[int]:
    """Cores this process may use, ascending: a container or `taskset` may have given it a part of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(psutil.cpu_count() or 1))


def physical_cores() -> int:
    """Cores of this process's own, a hyper-thread not counted where its core is."""
    return sum(not _is_second_thread(core) for core in own_cores()) or 1


def used_share(seconds: float) -> list[float]:
    """How much each core of the machine is in use, 0 to 1, observed for so long."""
    return [percent / 100 for percent in psutil.cpu_percent(interval=seconds, percpu=True)]


def pick_cores(threads: int) -> list[int]:
    """Return up to `threads` cores of this process's own, best first; [] where the system cannot pin.

    Distinct physical cores come before their hyper-threads, faster ones before slower ones, and among
    equals those that are idle now, so that two measurements at once do not share a core.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    busy = used_share(_LOOK_S)

    def rank(core: int) -> tuple[bool, int, int, int]:
        load = int(busy[core] * 10) if core < len(busy) else 0
        return (_is_second_thread(core), -_top_khz(core), load, core)

    return sorted(own_cores(), key=rank)[:threads]


def _is_second_thread(core: int) -> bool:
    path = _SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list"
    if not path.exists():
        return False
    first = path.read_text().replace("-", ",").split(",")[0]
    return int(first) != core


def _top_khz(core: int) -> int:
    path = _SYSTEM / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq"
    return int(path.read_text()) if path.exists() else 0
