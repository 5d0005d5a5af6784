"""The device a model is compiled for, and what is known about it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from deploypruner.registries import targets

# What the int8 kernels of both runtimes use; reported so that a slow int8 row can be explained.
_INT8_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Target:
    """A device.

    Args:
        name: What the user passed as `--target`.
        processor: Marketing name of the CPU.
        cores: Cores this process may use.
        int8_features: CPU flags that int8 kernels depend on.
    """

    name: str
    processor: str
    cores: int
    int8_features: tuple[str, ...]

    @property
    def saturates(self) -> bool:
        """Do int8 kernels here sum two u8 x i8 products in 16 bits, so that weights must use 7 bits?

        True of x86 before VNNI (the AVX2 instruction vpmaddubsw saturates).
        """
        return "avx2" in self.int8_features and not any("vnni" in f or "amx" in f for f in self.int8_features)


def detect(name: str = "cpu") -> Target:
    """Describe the target called `name`.

    Raises:
        RecipeError: No such target; the hint offers the nearest.
    """
    return targets.get(name)()


@targets.register("cpu", about="this machine's processor, through OpenVINO and ONNX Runtime")
def this_machine() -> Target:
    """Describe the machine we run on."""
    fields = _cpuinfo()
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return Target(
        name="cpu",
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        int8_features=tuple(flag for flag in _INT8_FLAGS if flag in flags),
    )


def _cpuinfo() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
