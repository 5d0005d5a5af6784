"""Operators that move, choose and resize."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.qat.operators.register import Inputs, axes_of, integers, operator


@operator("Reshape")
def _reshape(node: ir.Node, inputs: Inputs) -> Tensor:
    x, shape = inputs[0], [int(i) for i in inputs[1].tolist()]
    if not node.attributes.get_int("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


@operator("Flatten")
def _flatten(node: ir.Node, inputs: Inputs) -> Tensor:
    axis = node.attributes.get_int("axis", 1)
    return inputs[0].reshape(math.prod(inputs[0].shape[:axis]), -1)


@operator("Transpose")
def _transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].permute(integers(node, "perm") or list(reversed(range(inputs[0].dim()))))


@operator("Squeeze")
def _squeeze(node: ir.Node, inputs: Inputs) -> Tensor:
    axes = axes_of(node, inputs)
    return torch.squeeze(inputs[0]) if axes is None else torch.squeeze(inputs[0], tuple(axes))


@operator("Unsqueeze")
def _unsqueeze(node: ir.Node, inputs: Inputs) -> Tensor:
    x: Tensor = inputs[0]
    axes = axes_of(node, inputs) or []
    for axis in sorted(axis % (x.dim() + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Concat")
def _concat(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.cat(list(inputs), node.attributes["axis"].as_int())


@operator("Split")
def _split(node: ir.Node, inputs: Inputs) -> tuple[Tensor, ...]:
    x, axis, count = inputs[0], node.attributes.get_int("axis", 0), len(node.outputs)
    sizes = axes_of(node, inputs) or integers(node, "split")
    return tuple(x.split(sizes or math.ceil(x.shape[axis] / count), axis))


@operator("Slice")
def _slice(node: ir.Node, inputs: Inputs) -> Tensor:
    x, starts, ends = inputs[0], inputs[1].tolist(), inputs[2].tolist()
    axes = axes_of(node, inputs, 3) or list(range(len(starts)))
    steps = inputs[4].tolist() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        places = range(x.shape[axis])[slice(start, None if end < -x.shape[axis] else end, step)]
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(places.start, places.stop, places.step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(places), device=x.device))
    return x


@operator("Gather")
def _gather(node: ir.Node, inputs: Inputs) -> Tensor:
    x, index, axis = inputs[0], inputs[1], node.attributes.get_int("axis", 0) % inputs[0].dim()
    index = torch.where(index < 0, index + x.shape[axis], index)
    found = x.index_select(axis, index.reshape(-1))
    return found.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


@operator("Expand")
def _expand(node: ir.Node, inputs: Inputs) -> Tensor:
    shape = torch.broadcast_shapes(inputs[0].shape, tuple(inputs[1].tolist()))
    return inputs[0].expand(shape)


@operator("Tile")
def _tile(node: ir.Node, inputs: Inputs) -> Tensor:
    return inputs[0].repeat(inputs[1].tolist())


@operator("Shape")
def _shape(node: ir.Node, inputs: Inputs) -> Tensor:
    shape = list(inputs[0].shape)
    end = node.attributes.get("end")
    return torch.tensor(shape[node.attributes.get_int("start", 0) : None if end is None else end.as_int()])


@operator("ConstantOfShape")
def _constant_of_shape(node: ir.Node, inputs: Inputs) -> Tensor:
    value = torch.zeros(1)
    if "value" in node.attributes:
        value = torch.from_numpy(node.attributes["value"].as_tensor().numpy().copy())
    return torch.full(tuple(inputs[0].tolist()), value.item(), dtype=value.dtype)


@operator("Range")
def _range(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.arange(*(part.item() for part in inputs), dtype=inputs[0].dtype)


@operator("Pad")
def _pad(node: ir.Node, inputs: Inputs) -> Tensor:
    x, mode = inputs[0], node.attributes.get_string("mode", "constant")
    pads, axes = inputs[1].tolist(), axes_of(node, inputs, 3) or list(range(inputs[0].dim()))
    value = float(inputs[2]) if len(inputs) > 2 and inputs[2] is not None else 0.0
    sides = dict.fromkeys(range(x.dim()), (0, 0))
    sides |= {axis % x.dim(): (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    flat = [side for axis in reversed(range(x.dim())) for side in sides[axis]]
    if mode == "constant":
        return F.pad(x, flat, value=value)
    spatial = flat[: 2 * (x.dim() - 2)]
    if any(flat[len(spatial) :]):
        raise InputError(f"{node.name} mirrors channels, which quantization-aware training does not know")
    return F.pad(x, spatial, mode={"edge": "replicate"}.get(mode, mode))


@operator("Resize")
def _resize(node: ir.Node, inputs: Inputs) -> Tensor:
    x = inputs[0]
    scales, sizes = (inputs[i] if len(inputs) > i else None for i in (2, 3))
    mode = node.attributes.get_string("mode", "nearest")
    how = node.attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if sizes is not None and sizes.numel():
        wanted = [int(i) for i in sizes.tolist()]
    else:
        assert scales is not None, "it has either"
        wanted = [math.floor(n * s) for n, s in zip(x.shape, scales.tolist(), strict=True)]
    known: dict[tuple[str, str], dict[str, Any]] = {
        ("linear", "half_pixel"): {"mode": "bilinear", "align_corners": False},
        ("linear", "pytorch_half_pixel"): {"mode": "bilinear", "align_corners": False},
        ("linear", "align_corners"): {"mode": "bilinear", "align_corners": True},
        ("nearest", "asymmetric"): {"mode": "nearest"},
    }
    if x.dim() != 4 or wanted[:2] != list(x.shape[:2]) or (mode, how) not in known:
        raise InputError(f"{node.name} resizes by {mode}, {how}, which quantization-aware training does not know")
    return F.interpolate(x, wanted[2:], **known[mode, how])


@operator("DepthToSpace")
def _depth_to_space(node: ir.Node, inputs: Inputs) -> Tensor:
    if node.attributes.get_string("mode", "DCR") != "CRD":
        raise InputError(f"{node.name} orders depth first, which quantization-aware training does not know")
    return F.pixel_shuffle(inputs[0], node.attributes["blocksize"].as_int())
