"""What the machine does at one moment: who uses its cores, how fast and how hot they are."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploypruner.device.cores import busy_seconds, core_times, own_cores, read_number

_SYSTEM = Path("/sys/devices/system/cpu")
_ZONES = Path("/sys/class/thermal")
_CPUINFO = Path("/proc/cpuinfo")
_VMSTAT = Path("/proc/vmstat")
_SWAPPED = ("pswpin", "pswpout")


@dataclass(frozen=True)
class Reading:
    """Counters at one moment, seconds since boot or start; only differences mean something.

    Args:
        busy_s: Of all cores this process may use together, time spent on programs and the kernel, stolen time not
            counted.
        stolen_s: Of the same cores, taken by the host.
        own_s: Of the processes that measure: these workers, this process and the one that started it.
        mhz: Frequency of the fastest core now, None where the system does not say.
        at_s: When it was read, on the clock of the machine.
        celsius: Of the hottest sensor now, None where the system shows none.
        throttled: How often cores were slowed down because they were hot, None where the system does not count.
        swapped: Pages moved to and from the disk, None where the system does not count.
    """

    busy_s: float
    stolen_s: float
    own_s: float
    mhz: float | None
    at_s: float = 0.0
    celsius: float | None = None
    throttled: int | None = None
    swapped: int | None = None


def read_counters(pids: Sequence[int]) -> Reading:
    """Read the system's counters; `pids` are the workers."""
    every = core_times()
    mine = [every[core] for core in own_cores() if core in every]
    return Reading(
        busy_s=sum(map(busy_seconds, mine)),
        stolen_s=sum(times.get("steal", 0.0) for times in mine),
        own_s=sum(map(_own_seconds, {os.getpid(), os.getppid(), *pids})),
        mhz=frequency_mhz(),
        at_s=time.monotonic(),
        celsius=max(temperatures().values(), default=None),
        throttled=_throttled(),
        swapped=_swapped(),
    )


def frequency_mhz() -> float | None:
    """Frequency of the fastest of this process's cores now, None where the system does not say."""
    khz = [read_number(_SYSTEM / f"cpu{core}" / "cpufreq" / "scaling_cur_freq") for core in own_cores()]
    known = [value / 1000 for value in khz if value]
    return max(known or _mhz_of_cpuinfo(), default=None)


def temperatures() -> dict[str, float]:
    """Sensor -> degrees Celsius now."""
    found = {}
    for zone in sorted(_ZONES.glob("thermal_zone*")):
        millis = read_number(zone / "temp")
        if millis:  # a sensor that is switched off reads 0
            kind = zone / "type"
            found[f"{zone.name} {kind.read_text().strip() if kind.exists() else ''}".strip()] = millis / 1000
    return found


def _mhz_of_cpuinfo() -> list[float]:
    if not _CPUINFO.exists():
        return []
    lines = (line.partition(":") for line in _CPUINFO.read_text().splitlines())
    return [float(value) for key, _, value in lines if key.strip() == "cpu MHz"]


def _throttled() -> int | None:
    counts = [
        read_number(_SYSTEM / f"cpu{core}" / "thermal_throttle" / "core_throttle_count") for core in own_cores()
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _swapped() -> int | None:
    if not _VMSTAT.exists():
        return None
    fields: Mapping[str, str] = dict(line.split() for line in _VMSTAT.read_text().splitlines())
    return sum(int(fields.get(name, 0)) for name in _SWAPPED)


def _own_seconds(pid: int) -> float:
    """Processor time of a process; 0 of one that is gone."""
    path = Path(f"/proc/{pid}/stat")
    if not Path("/proc/stat").exists():
        return _seconds_of_psutil(pid)
    try:
        # Its name, in parentheses, may hold blanks.
        fields = path.read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _seconds_of_psutil(pid: int) -> float:
    try:
        import psutil
    except ModuleNotFoundError:
        return 0.0
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:  # a worker that has crashed
        return 0.0
    return float(times.user + times.system)
