"""Layers: convolutions, matrix products, norms, softmax."""

from __future__ import annotations

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.qat.operators.padding import padded
from deploypruner.qat.operators.register import Inputs, integers, operator


@operator("Conv")
def _conv(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight = inputs[0], inputs[1]
    count = weight.dim() - 2
    strides, dilations = integers(node, "strides") or [1] * count, integers(node, "dilations") or [1] * count
    wide = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    bias = inputs[2] if len(inputs) > 2 else None
    groups = node.attributes.get_int("group", 1)
    convolve = (F.conv1d, F.conv2d, F.conv3d)[count - 1]
    pads = integers(node, "pads") or [0] * (2 * count)
    if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET" and pads[:count] == pads[count:]:
        return convolve(x, weight, bias, strides, pads[:count], dilations, groups)
    return convolve(padded(node, x, wide, strides, value=0.0), weight, bias, strides, 0, dilations, groups)


@operator("ConvTranspose")
def _conv_transpose(node: ir.Node, inputs: Inputs) -> Tensor:
    x, weight = inputs[0], inputs[1]
    count = weight.dim() - 2
    pads, one = integers(node, "pads") or [0] * (2 * count), [1] * count
    if pads[:count] != pads[count:] or "output_shape" in node.attributes:
        raise InputError(f"{node.name} cuts its border unevenly, which quantization-aware training does not know")
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[count - 1]
    return convolve(
        x,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        integers(node, "strides") or one,
        pads[:count],
        integers(node, "output_padding") or 0,
        node.attributes.get_int("group", 1),
        integers(node, "dilations") or one,
    )


@operator("Gemm")
def _gemm(node: ir.Node, inputs: Inputs) -> Tensor:
    a, b = inputs[0], inputs[1]
    a = a.mT if node.attributes.get_int("transA", 0) else a
    b = b.mT if node.attributes.get_int("transB", 0) else b
    product: Tensor = node.attributes.get_float("alpha", 1.0) * (a @ b)
    if len(inputs) > 2 and inputs[2] is not None:
        product = product + node.attributes.get_float("beta", 1.0) * inputs[2]
    return product


@operator("MatMul")
def _matmul(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.matmul(inputs[0], inputs[1])


@operator("LayerNormalization")
def _layer_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x = inputs[0]
    shape = x.shape[node.attributes.get_int("axis", -1) :]
    bias = inputs[2] if len(inputs) > 2 else None
    return F.layer_norm(x, shape, inputs[1], bias, node.attributes.get_float("epsilon", 1e-5))


@operator("BatchNormalization")
def _batch_norm(node: ir.Node, inputs: Inputs) -> Tensor:
    x, scale, bias, mean, variance = inputs[:5]
    return F.batch_norm(x, mean, variance, scale, bias, eps=node.attributes.get_float("epsilon", 1e-5))


@operator("Softmax", "LogSoftmax")
def _softmax(node: ir.Node, inputs: Inputs) -> Tensor:
    function = torch.softmax if node.op_type == "Softmax" else torch.log_softmax
    return function(inputs[0], node.attributes.get_int("axis", -1))


@operator("Einsum")
def _einsum(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.einsum(node.attributes.get_string("equation"), *inputs)
