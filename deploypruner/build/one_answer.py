"""Do both runtimes understand a file alike? What they do not cannot be judged in either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploypruner.errors import InputError
from deploypruner.measure.quality import Batch, joined, outputs
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.tasks import Array
from deploypruner.verify.compare import relative_error

# Batches that both answer, and how far they may be apart: int8 rounds differently in the two.
_COMPARED, _APART = 2, 0.5


def require_one_answer(path: Path, batches: Sequence[Batch], *, threads: int) -> None:
    """Compare what ONNX Runtime and OpenVINO answer to a few batches.

    Raises:
        InputError: They differ by half an output's size or more; the output is named.
    """
    sessions = [runtime.open(path, threads=threads) for runtime in (OnnxRuntime(), OpenVino())]
    answers = [joined(outputs(session, batches[:_COMPARED])) for session in sessions]
    for spec, one, other in zip(sessions[0].outputs, *answers, strict=True):
        apart = distance(one, other)
        if apart > _APART:
            raise InputError(
                f"ONNX Runtime and OpenVINO disagree about output '{spec.name}' of '{path}' by {100 * apart:.0f} %, "
                "and the sparse kernels run in OpenVINO",
                hint="deploy it in ONNX Runtime, or export it without what OpenVINO computes otherwise (If, Loop)",
            )


def distance(one: Array, other: Array) -> float:
    """Norm of the difference over the larger norm of both; 0 where no float says anything.

    1 where the shapes differ, or only one of both is a finite number.
    """
    if one.shape != other.shape:
        return 1.0
    if one.dtype.kind != "f":
        return 0.0
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return 1.0
    return min(relative_error(one, other), relative_error(other, one))
