"""Borders of windows as ONNX describes them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor
from torch.nn import functional as F

from deploypruner.qat.operators.register import integers


def padded(node: ir.Node, x: Tensor, kernel: Sequence[int], strides: Sequence[int], *, value: float) -> Tensor:
    """The input with its border: the two sides of an axis may differ."""
    count, mode = len(kernel), node.attributes.get_string("auto_pad", "NOTSET")
    pads = integers(node, "pads") or [0] * (2 * count)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * (2 * count)
        for axis, (size, k, stride) in enumerate(zip(x.shape[2:], kernel, strides, strict=True)):
            more = max((math.ceil(size / stride) - 1) * stride + k - size, 0)
            first = more // 2 if mode == "SAME_UPPER" else more - more // 2
            pads[axis], pads[axis + count] = first, more - first
    if not any(pads):
        return x
    return F.pad(x, [pads[axis + side * count] for axis in reversed(range(count)) for side in (0, 1)], value=value)
