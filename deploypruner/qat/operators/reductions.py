"""Pools and reductions."""

from __future__ import annotations

import math
from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.qat.operators.padding import padded
from deploypruner.qat.operators.register import Inputs, axes_of, integers, operator


@operator("MaxPool", "AveragePool")
def _pool(node: ir.Node, inputs: Inputs) -> Tensor:
    x, kernel = inputs[0], integers(node, "kernel_shape") or []
    count = len(kernel)
    strides, dilations = integers(node, "strides") or [1] * count, integers(node, "dilations") or [1] * count
    if node.attributes.get_int("ceil_mode", 0):
        raise InputError(f"{node.name} rounds its size up, which quantization-aware training does not know")
    wide = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    if node.op_type == "MaxPool":
        pool = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[count - 1]
        found: Tensor = pool(padded(node, x, wide, strides, value=-math.inf), kernel, strides, 0, dilations)
        return found
    if max(dilations) > 1:
        raise InputError(f"{node.name} has gaps in its window, which quantization-aware training does not know")
    average = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[count - 1]
    mean: Tensor = average(padded(node, x, kernel, strides, value=0.0), kernel, strides)
    if node.attributes.get_int("count_include_pad", 0):
        return mean
    inside = average(padded(node, torch.ones_like(x[:1, :1]), kernel, strides, value=0.0), kernel, strides)
    return mean / inside


@operator("GlobalAveragePool", "GlobalMaxPool")
def _global_pool(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = tuple(range(2, inputs[0].dim()))
    function = torch.mean if node.op_type == "GlobalAveragePool" else torch.amax
    return function(inputs[0], dim=axes, keepdim=True)


_REDUCED: dict[str, Callable[..., Tensor]] = {
    "ReduceL2": lambda x, dim, keepdim: torch.linalg.vector_norm(x, 2, dim, keepdim),
    "ReduceMax": torch.amax,
    "ReduceMean": torch.mean,
    "ReduceMin": torch.amin,
    "ReduceSum": torch.sum,
    "ReduceSumSquare": lambda x, dim, keepdim: x.square().sum(dim, keepdim),
}


@operator(*_REDUCED)
def _reduce(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = axes_of(node, inputs)
    if not axes:
        if node.attributes.get_int("noop_with_empty_axes", 0):
            return inputs[0]
        axes = list(range(inputs[0].dim()))
    return _REDUCED[node.op_type](inputs[0], dim=axes, keepdim=bool(node.attributes.get_int("keepdims", 1)))
