"""Which processor cores the workers run on."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_SYSTEM = Path("/sys/devices/system/cpu")
_LOOK_S = 0.1


def pick_cores(threads: int) -> list[int]:
    """Return up to `threads` cores of this process's own, best first; [] where the system cannot pin.

    Distinct physical cores come before their hyper-threads, faster ones before slower ones, and among
    equals those that are idle now, so that two measurements at once do not share a core.
    """
    if not hasattr(os, "sched_getaffinity"):
        return []
    busy = psutil.cpu_percent(interval=_LOOK_S, percpu=True)

    def rank(core: int) -> tuple[bool, int, int, int]:
        load = int(busy[core] // 10) if core < len(busy) else 0
        return (_is_second_thread(core), -_top_khz(core), load, core)

    return sorted(os.sched_getaffinity(0), key=rank)[:threads]


def _is_second_thread(core: int) -> bool:
    path = _SYSTEM / f"cpu{core}" / "topology" / "thread_siblings_list"
    if not path.exists():
        return False
    first = path.read_text().replace("-", ",").split(",")[0]
    return int(first) != core


def _top_khz(core: int) -> int:
    path = _SYSTEM / f"cpu{core}" / "cpufreq" / "cpuinfo_max_freq"
    return int(path.read_text()) if path.exists() else 0
