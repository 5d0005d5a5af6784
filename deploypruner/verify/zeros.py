"""Zeros of sparse weights, looked up in exported files."""

from __future__ import annotations

from collections.abc import Mapping
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
    found = {name: _called(name, weight, before) for name, weight in weights.items()}
    missing = [name for name, called in found.items() if not called]
    checks = []
    for path, constants in ((fp32, before), (int8, after)):
        lost = total = 0
        for name, called in found.items():
            if called:
                zero = weights[name] == 0
                there = constants[called]
                lost += int((there != 0)[zero if there.shape == zero.shape else zero.T].sum())
                total += int(zero.sum())
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


def _called(name: str, weight: Array, constants: Mapping[str, Array]) -> str:
    """What the file calls a weight, "" where nothing has its zeros."""
    if name in constants and constants[name].shape == weight.shape:
        return name
    zeros = (weight == 0).T
    for called, there in constants.items():
        if there.shape == zeros.shape and np.array_equal(there == 0, zeros):
            return called
    return ""
