"""The device a model is compiled for, and what is known about it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploypruner.registries import targets

WeightBits = Literal["auto", "7", "8"]

# What the int8 kernels of both runtimes use; reported so that a slow int8 row can be explained.
_INT8_FLAGS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")

LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Variables of the process that keep OpenVINO from using all instructions of the CPU."""

# Products in bf16; kept apart, as what is measured in int8 does not depend on them.
_BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")

# The first that a processor has, the best first: times the products of fp32, and how that is counted: products of one
# instruction against those of a fused fp32 one.
_INT8_GIVES = {
    "amx_int8": (32, "AMX: int8 tiles multiply 32 times as many numbers a cycle as fp32 (memory sets the limit)"),
    "avx512_vnni": (4, "AVX-512 VNNI: int8 has 4 times the multiply-adds of fp32, 64 against 16 an instruction"),
    "avx_vnni": (4, "AVX-VNNI: int8 has 4 times the multiply-adds of fp32, 32 against 8 an instruction"),
    "i8mm": (8, "int8 matrix products: int8 has 8 times the multiply-adds of fp32, 32 against 4 an instruction"),
    "asimddp": (4, "dot product: int8 has 4 times the multiply-adds of fp32, 16 against 4 an instruction"),
    "avx2": (
        32 / 3 / 8,
        "AVX2 without VNNI: int8 has 1.3 times the multiply-adds of fp32, 32 in three instructions against 8 in one; "
        "weights get 7 bits, as sums of two products would saturate in 16",
    ),
}


@dataclass(frozen=True)
class Target:
    """A device.

    Args:
        name: What the user passed as `--target`.
        processor: Marketing name of the CPU.
        cores: Cores this process may use.
        int8_features: CPU flags that int8 kernels depend on.
        bf16_features: CPU flags of products in bf16.
        described: Does the system say which instructions the processor has?
    """

    name: str
    processor: str
    cores: int
    int8_features: tuple[str, ...]
    bf16_features: tuple[str, ...] = ()
    described: bool = True

    @property
    def saturates(self) -> bool:
        """Do int8 kernels here sum two u8 x i8 products in 16 bits, so that weights must use 7 bits?

        True of x86 before VNNI (the AVX2 instruction vpmaddubsw saturates).
        """
        return "avx2" in self.int8_features and not any("vnni" in f or "amx" in f for f in self.int8_features)

    @property
    def multiplies_bf16(self) -> bool:
        """Do torch and OpenVINO find instructions for products in bf16 here? False where the system does not say."""
        return not {"avx512_bf16", "amx_bf16"}.isdisjoint(self.bf16_features)

    @property
    def int8_bound(self) -> float | None:
        """Multiply-adds a cycle in int8 over those in fp32, a bound on what int8 can give; None where nobody knows.

        Counted from the instructions: both kinds start as often a cycle on the processors that have them.
        """
        return self._int8_gives[0] if self._int8_gives else None

    @property
    def int8_outlook(self) -> str:
        """What int8 can give here at most, in a sentence: multiply-adds of one instruction against those of fp32."""
        if not self.described:
            return "what int8 can give is not known: the system does not say which instructions this processor has"
        if self._int8_gives is None:
            return "no int8 instructions that the runtimes use: int8 saves memory here, and hardly any time"
        return (
            f"{self._int8_gives[1]}: a bound, not a promise; layers with few channels, depthwise ones and all that "
            "stays float get less"
        )

    @property
    def _int8_gives(self) -> tuple[float, str] | None:
        return next((gives for flag, gives in _INT8_GIVES.items() if flag in self.int8_features), None)


def reduces_range(asked: WeightBits, target: Target) -> bool:
    """Do int8 weights get 7 bits?

    Args:
        asked: What the user wants; "auto" goes by the target.
        target: Where they are to run.
    """
    return asked == "7" or (asked == "auto" and target.saturates)


def detect(name: str = "cpu") -> Target:
    """Describe the target called `name`.

    Raises:
        RecipeError: No such target; the hint offers the nearest.
    """
    return targets.get(name)()


@targets.register("cpu", about="this machine's processor, through OpenVINO and ONNX Runtime")
def this_machine() -> Target:
    """Describe the machine we run on."""
    fields, flags = _cpuinfo(), processor_flags()
    return Target(
        name="cpu",
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        int8_features=tuple(flag for flag in _INT8_FLAGS if flag in flags),
        bf16_features=tuple(flag for flag in _BF16_FLAGS if flag in flags),
        described=bool(flags),
    )


def processor_flags() -> frozenset[str]:
    """What /proc/cpuinfo calls "flags" (x86) or "Features" (Arm); empty where the system does not say."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def _cpuinfo() -> dict[str, str]:
    """First processor's fields of /proc/cpuinfo; empty where the system has none."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    pairs = (line.partition(":") for line in path.read_text().split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
