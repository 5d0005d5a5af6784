"""OpenVINO on the CPU, told to compute in bf16 whatever is float: a setting of the runtime, and not of a file.

The hint is one for the whole model, and what OpenVINO makes of it differs by operation: on an AMD EPYC with
AVX512_BF16 (OpenVINO 2026.4) convolutions, products, layer norms and most of what stands between them run in bf16,
int8 layers stay int8, and what these hand to a float layer is bf16; the hard sigmoids of gates stay in f32. The
listing of what was executed says it of every layer.
"""

from __future__ import annotations

from typing import ClassVar

from deploypruner.records import Environment, Precision
from deploypruner.runtime import runtimes
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.target import Target


@runtimes.register("openvino-bf16")
class OpenVinoBf16(OpenVino):
    """OpenVINO, CPU plugin, one latency stream, what is float in bf16; only where the processor multiplies in it."""

    label: ClassVar[str] = "OpenVINO in bf16"
    by_default: ClassVar[bool] = False
    sparse: ClassVar[bool] = False  # our operations read and write f32 and integers
    float_precision: ClassVar[str] = "bf16"
    in_bf16: ClassVar[str] = ""
    in_float32: ClassVar[str] = "openvino"

    @classmethod
    def environments(cls, precision: Precision, target: Target) -> tuple[Environment, ...]:
        """See `Runtime.environments`: without the instructions that others may be slower with there is no bf16."""
        return ((),)

    @classmethod
    def lacking(cls, target: Target) -> str:
        """See `Runtime.lacking`: without the instructions OpenVINO would quietly compute in f32."""
        if target.multiplies_bf16:
            return ""
        if not target.described:
            return f"the system does not say whether {target.processor} multiplies in bf16"
        return f"{target.processor} has no instructions for bf16"
