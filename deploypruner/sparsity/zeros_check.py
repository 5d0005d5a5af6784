"""Zeros of sparse weights, looked up in exported files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

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
    found = {name: _found(name, places, before) for name, places in zeros.items()}
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


def _constants(path: Path) -> dict[str, Array]:
    """Weights of the file by the name they had before quantization, zero points taken off."""
    graph = onnx.load(path).graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    integers = {n.output[0]: n.input for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in values}
    found = {}
    for node in graph.node:
        if node.op_type not in _WEIGHTED:
            continue
        name = node.input[1]
        if name in values:
            found[name] = numpy_helper.to_array(values[name])
        elif name in integers:
            stored, _, point = integers[name]
            offset = numpy_helper.to_array(values[point]).astype(np.int32)
            assert not offset.any(), f"'{stored}' has a zero point, so its zeros are no zeros"
            found[stored.removesuffix("_quantized")] = numpy_helper.to_array(values[stored])
    return found


@dataclass(frozen=True)
class _Place:
    """Where a file keeps a weight."""

    name: str
    transposed: bool


def _found(name: str, zeros: Array, constants: Mapping[str, Array]) -> _Place | None:
    """What the file calls a weight, None where nothing has its zeros."""
    if name in constants and constants[name].shape == zeros.shape:
        return _Place(name, transposed=False)
    # Square weights have one shape both ways round, so only the places of the zeros tell.
    for called, there in constants.items():
        if there.shape == zeros.T.shape and np.array_equal(there == 0, zeros.T):
            return _Place(called, transposed=True)
    return None
