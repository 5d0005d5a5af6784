"""The machine and the software behind a measurement, told where it is taken."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from deploypruner import __version__
from deploypruner.device.cores import core_kinds, own_cores, physical_cores, used_share
from deploypruner.device.counters import frequency_mhz, temperatures
from deploypruner.reading import memory_bytes
from deploypruner.target import LIMITS, detect, processor_flags

_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
_LOOK_S = 0.2
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
_CLOCK = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_MEMINFO = Path("/proc/meminfo")
_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
# What Arm processors say instead of a name; the kinds of cores that one has.
_PART = ("CPU implementer", "CPU part", "CPU variant", "CPU revision")


def environment() -> dict[str, Any]:
    """Describe machine and software as JSON-able values; None where the system does not say.

    Call it before measuring: `busy_cores`, observed for 0.2 s on the cores this process may use, is then what others
    use. (The load average still remembers a training run that has ended.) No package is imported for its version.
    """
    target, used, mhz = detect(), used_share(_LOOK_S), frequency_mhz()
    return {
        "time_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": target.processor,
        "cores": target.cores,
        "int8_features": list(target.int8_features),
        "memory_bytes": memory_bytes(),
        "busy_cores": sum(used.get(core, 0.0) for core in own_cores()),
        "load_average_1min": os.getloadavg()[0],
        "frequency_mhz": round(mhz) if mhz else None,
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.exists() else None,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {"deploypruner": __version__, **{name: _version(name) for name in _PACKAGES}},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def identity() -> dict[str, Any]:
    """What a build goes by, JSON-able: nothing in it changes while the machine runs, and nothing is waited for.

    {"target": as `target.detect` says, "physical_cores", "limits": variables that keep OpenVINO from instructions,
    "versions": of the packages, "architecture", "libc": what compiled code has to fit, "fingerprint": what times
    depend on and an address does not}
    """
    target = detect()
    fingerprint: dict[str, Any] = {
        "cpu": target.processor,
        "cores": target.cores,
        "features": list(target.int8_features),
    }
    if parts := _parts():
        fingerprint["parts"] = parts
    if _BOARD.exists():
        fingerprint["board"] = _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0\n ")
    return {
        "target": asdict(target),
        "physical_cores": physical_cores(),
        "limits": {name: os.environ[name] for name in LIMITS if name in os.environ},
        "versions": {"deploypruner": __version__, **{name: _version(name) for name in _PACKAGES}},
        "architecture": platform.machine(),
        "libc": _libc(),
        "fingerprint": fingerprint,
    }


def details(folder: Path) -> dict[str, Any]:
    """What `environment` leaves out and a person who sets up a device wants to know, JSON-able.

    Args:
        folder: Whose disk is looked at.
    """
    target = detect()
    return {
        "environment": environment(),
        "target": asdict(target),
        "machine": platform.machine(),
        "flags": sorted(processor_flags()),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "python": sys.executable,
        "kinds": core_kinds(),
        "all_cores": os.cpu_count() or target.cores,
        "memory": _memory(),
        "celsius": temperatures(),
        "clock": _CLOCK.read_text().strip() if _CLOCK.exists() else None,
        "folder": str(folder),
        "free_bytes": shutil.disk_usage(folder).free,
    }


def _memory() -> dict[str, int]:
    """Bytes that are free for programs, and of the swap those that are used; what is not said is left out."""
    if not _MEMINFO.exists():
        return {}
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    kilobytes = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
    found = {"total": kilobytes["MemTotal"] * 1024}
    if "MemAvailable" in kilobytes:
        found["available"] = kilobytes["MemAvailable"] * 1024
    if "SwapTotal" in kilobytes:
        found["swap_used"] = (kilobytes["SwapTotal"] - kilobytes.get("SwapFree", 0)) * 1024
    return found


def _parts() -> list[str]:
    """Every kind of core that an Arm processor names by numbers; [] where others name them."""
    if not _CPUINFO.exists():
        return []
    found = set[str]()
    for block in _CPUINFO.read_text().split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if _PART[1] in fields:
            found.add(" ".join(fields.get(name, "") for name in _PART))
    return sorted(found)


def _libc() -> str:
    """Name and version of the C library, as in "glibc 2.36"; "" where it is another one."""
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (AttributeError, ValueError):
        return ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
