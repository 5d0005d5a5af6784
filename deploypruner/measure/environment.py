"""The machine and the software behind a measurement."""

from __future__ import annotations

import os
import platform
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from deploypruner import __version__
from deploypruner.measure.cores import own_cores, used_share
from deploypruner.target import detect

_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "numpy")
_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
_LOOK_S = 0.2
_GOVERNOR = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")


def environment() -> dict[str, Any]:
    """Describe machine and software as JSON-able values; None where the system does not say.

    Call it before measuring: `busy_cores`, observed for 0.2 s on the cores this process may use, is then what others
    use. (The load average still remembers a training run that has ended.) No package is imported for its version.
    """
    target, used = detect(), used_share(_LOOK_S)
    # Virtual machines give psutil nothing to read.
    frequency = psutil.cpu_freq()
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": target.processor,
        "cores": target.cores,
        "int8_features": list(target.int8_features),
        "memory_bytes": psutil.virtual_memory().total,
        "busy_cores": sum(used[core] for core in own_cores() if core < len(used)),
        "load_average_1min": psutil.getloadavg()[0],
        "frequency_mhz": round(frequency.current) if frequency else None,
        "governor": _GOVERNOR.read_text().strip() if _GOVERNOR.exists() else None,
        "os": platform.platform(),
        "python": sys.version.split()[0],
        "versions": {"deploypruner": __version__, **{name: _version(name) for name in _PACKAGES}},
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
