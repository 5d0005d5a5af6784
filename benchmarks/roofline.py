"""What a core can do: kernels/bench/peak.cpp, compiled with the compiler that builds the kernels, and run pinned."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

from deploypruner.device.cores import pick_cores

SOURCE = Path(__file__).parents[1] / "kernels" / "bench" / "peak.cpp"
STEP = "load + vpdpbusd"


def measure_peak() -> dict[str, float]:
    """Rates a second: instructions, pairs of instructions, bytes read.

    Raises:
        subprocess.CalledProcessError: No compiler, or a processor without AVX-512 VNNI; what it said is in `stderr`.
    """
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        compiler = os.environ.get("CXX", "g++")
        command = [compiler, "-O2", "-std=c++17", "-mavx512f", str(SOURCE), "-o", str(program)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        core = ",".join(map(str, pick_cores(1)))
        done = subprocess.run(["taskset", "-c", core, str(program)], check=True, capture_output=True, text=True)
    rates: dict[str, float] = json.loads(done.stdout)
    return rates
