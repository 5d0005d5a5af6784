"""Random sparse convolutions, and what torch makes of them in float64: shared by the tests of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from deploypruner.sparse.bindings import ConvShape
from deploypruner.sparse.layer import NO_LIMIT
from deploypruner.sparse.packed import pack

DOMAIN = "deploypruner"
Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Case:
    """A convolution with its inputs; activations are [N, H, W, C]."""

    shape: ConvShape
    weights: NDArray[np.int8]
    scale: NDArray[np.float32]
    bias: NDArray[np.int32]
    x: Bytes
    residual: Bytes | None


def random_case(seed: int, *, batch: int = 1) -> Case:
    """1x1, k x k, depthwise or grouped, any stride, dilation, padding, zero point and share of zeros."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(4)
    groups = 1 if kind < 2 else int(rng.integers(1, 30 if kind == 2 else 5))
    per_group = 1 if kind == 2 else int(rng.integers(1, 70 if groups == 1 else 9))
    rows = 1 if kind == 2 else int(rng.integers(1, 40 if groups == 1 else 9))
    kernel, stride, dilation, pads = (1, 1), (1, 1), (1, 1), (0, 0, 0, 0)
    if kind:
        kernel, stride = _two(rng, 1, 4), _two(rng, 1, 3)
        dilation, pads = _two(rng, 1, 3), (*_two(rng, 0, 3), *_two(rng, 0, 3))
    size = [d * (k - 1) + 1 + int(rng.integers(0, 12)) for d, k in zip(dilation, kernel, strict=True)]
    low = int(rng.integers(0, 90))
    swish = rng.integers(4)
    shape = ConvShape(
        channels_in=groups * per_group,
        channels_out=groups * rows,
        groups=groups,
        height=size[0],
        width=size[1],
        kernel=kernel,
        stride=stride,
        dilation=dilation,
        pads=pads,
        input_zero_point=int(rng.integers(256)),
        output_zero_point=int(rng.integers(256)),
        low=low,
        high=int(rng.integers(low, 256)) if rng.random() < 0.5 else 255,
        residual_zero_point=int(rng.integers(256)) if rng.random() < 0.4 else None,
        residual_scale=float(np.float32(rng.uniform(0.1, 2))),
        sum_low=float(rng.choice([-NO_LIMIT, -40, -5])),
        sum_high=float(rng.choice([NO_LIMIT, 60, 10])),
        hard_swish_slope=float(np.float32(0.02)) if swish == 1 else 0.0,
        swish_step=float(np.float32(rng.choice([0.004, 0.1]))) if swish == 2 else 0.0,
    )
    weights = rng.integers(-127, 128, (groups * rows, per_group, *kernel)).astype(np.int8)
    weights[rng.random(weights.shape) < rng.choice([0, 0.5, 0.8, 0.95, 1.0])] = 0
    spread = np.sqrt((weights.astype(float) ** 2).reshape(len(weights), -1).sum(1) + 1) * 70
    bias = rng.integers(-2000, 2000, len(weights)).astype(np.int32)
    x = rng.integers(0, 256, (batch, *size, groups * per_group)).astype(np.uint8)
    added = rng.integers(0, 256, (batch, *shape.size_out, groups * rows)).astype(np.uint8)
    residual = None if shape.residual_zero_point is None else added
    return Case(shape, weights, (rng.uniform(20, 80) / spread).astype(np.float32), bias, x, residual)


def _two(rng: np.random.Generator, low: int, high: int) -> tuple[int, int]:
    first, second = rng.integers(low, high + 1, 2)
    return int(first), int(second)


def in_torch(case: Case, x: Bytes | None = None) -> NDArray[np.float64]:
    """[N, H, W, C] in float64 by torch's convolution, rounded and limited as the last step says."""
    shape = case.shape
    top, left, bottom, right = shape.pads
    centred = torch.from_numpy(case.x if x is None else x).double().permute(0, 3, 1, 2) - shape.input_zero_point
    sums = F.conv2d(
        F.pad(centred, (left, right, top, bottom)),
        torch.from_numpy(case.weights).double(),
        torch.from_numpy(case.bias).double(),
        stride=shape.stride,
        dilation=shape.dilation,
        groups=shape.groups,
    )
    steps = sums * torch.from_numpy(case.scale).double()[:, None, None]
    if shape.hard_swish_slope:
        steps = steps * (steps * shape.hard_swish_slope + 0.5).clamp(0, 1)
    if shape.swish_step:
        steps = steps * (steps * shape.swish_step).sigmoid()
    if case.residual is not None and shape.residual_zero_point is not None:
        added = torch.from_numpy(case.residual).double().permute(0, 3, 1, 2) - shape.residual_zero_point
        steps = steps.clamp(shape.sum_low, shape.sum_high) + added * shape.residual_scale
    limited = (steps.round() + shape.output_zero_point).clamp(shape.low, shape.high)
    return limited.permute(0, 2, 3, 1).numpy()


def as_onnx(case: Case, **changed: NDArray[np.generic] | int) -> bytes:
    """ToC4, SparseConv, FromC4 on uint8 [N, H, W, C], the batch open; `changed` replaces weights or attributes."""
    shape, channels_out = case.shape, len(case.weights)
    packed = pack(case.weights)
    sums = case.weights.reshape(channels_out, -1).sum(1, dtype=np.int64)
    folded = (case.bias - shape.input_zero_point * sums).astype(np.int32)
    stored = {"mask": packed.mask, "values": packed.values, "scale": case.scale, "bias": folded}
    said: dict[str, Any] = {
        "channels_in": shape.channels_in,
        "channels_out": channels_out,
        "group": shape.groups,
        "height": shape.height,
        "width": shape.width,
        "kernel_shape": shape.kernel,
        "strides": shape.stride,
        "dilations": shape.dilation,
        "pads": shape.pads,
        "input_zero_point": shape.input_zero_point,
        "output_zero_point": shape.output_zero_point,
        "low": shape.low,
        "high": shape.high,
        "residual_scale": shape.residual_scale,
        "sum_low": shape.sum_low,
        "sum_high": shape.sum_high,
        "residual_zero_point": shape.residual_zero_point or 0,
        "hard_swish_slope": shape.hard_swish_slope,
        "swish_step": shape.swish_step,
    }
    stored |= {name: value for name, value in changed.items() if name in stored}
    said |= {name: value for name, value in changed.items() if name in said}
    high, wide = shape.size_out
    sizes = {"x": (shape.height, shape.width, shape.channels_in), "y": (high, wide, channels_out)}
    nodes = [helper.make_node("ToC4", ["x"], ["x4"], domain=DOMAIN)]
    inputs = ["x4", *stored]
    if case.residual is not None:
        sizes["residual"] = sizes["y"]
        nodes.append(helper.make_node("ToC4", ["residual"], ["residual4"], domain=DOMAIN))
        inputs.append("residual4")
    nodes.append(helper.make_node("SparseConv", inputs, ["y4"], name="conv", domain=DOMAIN, **said))
    limits: dict[str, Any] = {"channels": channels_out, "height": high, "width": wide}
    nodes.append(helper.make_node("FromC4", ["y4"], ["y"], domain=DOMAIN, **limits))
    values_of = {
        name: helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", *size]) for name, size in sizes.items()
    }
    graph = helper.make_graph(
        nodes,
        "one",
        [value for name, value in values_of.items() if name != "y"],
        [values_of["y"]],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    return model
