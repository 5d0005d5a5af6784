"""Zeros of sparse weights, looked up in exported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from deploypruner.onnx_graph import constant, made_by, operand, optional
from deploypruner.records import Check

Array = NDArray[Any]
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def verify_zeros(weights: Mapping[str, Array], fp32: Path, int8: Path) -> list[Check]:
    """Count the zeros of torch that are no zeros in an ONNX file; none may get lost.

    The other way is allowed: int8 rounds small weights to zero. A weight is found by its name or, where the exporter
    transposed it, by the places of its zeros.

    Args:
        weights: Parameter name -> trained weight, [O, I, *kernel].
        fp32: The exported file.
        int8: Its QDQ form; integers count relative to their zero point.

    Returns:
        One check per file; `max_abs_diff` is the number of zeros that got lost.
    """
    before, after = _constants(fp32), _constants(int8)
    zeros = {name: weight == 0 for name, weight in weights.items()}
    places = {name: there == 0 for name, there in before.items()}
    found = {name: stored_as(name, zero, places) for name, zero in zeros.items()}
    missing = [name for name, place in found.items() if place is None]
    checks = []
    for path, constants in ((fp32, before), (int8, after)):
        lost = total = 0
        for name, place in found.items():
            if place is not None:
                there = constants[place.name].T if place.transposed else constants[place.name]
                lost += int((there != 0)[zeros[name]].sum())
                total += int(zeros[name].sum())
        detail = f"zeros lost, of {total:,}" + (f"; not found: {', '.join(missing)}" if missing else "")
        checks.append(Check(f"zeros of torch = zeros of {path.name}", float(lost), 0.0, lost == 0, detail))
    return checks


@dataclass(frozen=True)
class StoredWeight:
    """Where a file keeps a weight."""

    name: str
    transposed: bool


def stored_as(name: str, weight: Array, stored: Mapping[str, Array]) -> StoredWeight | None:
    """What a file calls a weight, by its name or, where the exporter transposed it, by its values; None for nothing.

    Args:
        name: Of the parameter.
        weight: Its values, or where it is zero.
        stored: The same of everything in the file, by name.
    """
    if name in stored and stored[name].shape == weight.shape:
        return StoredWeight(name, transposed=False)
    # Square weights have one shape both ways round, so only the values tell.
    for called, there in stored.items():
        if there.shape == weight.T.shape and np.array_equal(there, weight.T):
            return StoredWeight(called, transposed=True)
    return None


def _constants(path: Path) -> dict[str, Array]:
    """Weights of the file by the name they had before quantization, zero points taken off."""
    found = {}
    for node in ir.from_proto(onnx.load(path)).graph:
        if node.op_type not in _WEIGHTED:
            continue
        weight = operand(node, 1)
        restore = made_by(weight, "DequantizeLinear")
        stored = weight if restore is None else operand(restore, 0)
        values = constant(stored)
        if values is None:
            continue
        offset = None if restore is None else constant(optional(restore, 2))
        assert offset is None or not offset.any(), f"'{stored.name}' has a zero point, so its zeros are no zeros"
        found[str(stored.name).removesuffix("_quantized")] = values
    return found
