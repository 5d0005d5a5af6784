"""Operators that compute element by element."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.qat.operators.register import OPERATORS, Inputs, Operator, operator

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": F.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x < 0, x * slope, x),
    "Pow": torch.pow,
    "Sub": torch.sub,
}


def _elementwise(function: Callable[..., Tensor], count: int) -> Operator:
    return lambda node, inputs: function(*inputs[:count])


OPERATORS.update({name: _elementwise(function, 1) for name, function in _UNARY.items()})
OPERATORS.update({name: _elementwise(function, 2) for name, function in _BINARY.items()})


@operator("Div")
def _div(node: ir.Node, inputs: Inputs) -> Tensor:
    whole = not inputs[0].is_floating_point()
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc" if whole else None)


@operator("Max", "Min")
def _extreme(node: ir.Node, inputs: Inputs) -> Tensor:
    of_two = torch.maximum if node.op_type == "Max" else torch.minimum
    found: Tensor = inputs[0]
    for other in inputs[1:]:
        found = of_two(found, other)
    return found


@operator("Clip")
def _clip(node: ir.Node, inputs: Inputs) -> Tensor:
    low, high = (inputs[i] if len(inputs) > i else None for i in (1, 2))
    x: Tensor = inputs[0]
    if low is None and "min" in node.attributes:  # opset 6
        low = torch.tensor(node.attributes["min"].as_float())
    if high is None and "max" in node.attributes:
        high = torch.tensor(node.attributes["max"].as_float())
    return x if low is None and high is None else torch.clamp(x, low, high)


@operator("LeakyRelu")
def _leaky_relu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.leaky_relu(inputs[0], node.attributes.get_float("alpha", 0.01))


@operator("Elu")
def _elu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.elu(inputs[0], node.attributes.get_float("alpha", 1.0))


@operator("HardSigmoid")
def _hard_sigmoid(node: ir.Node, inputs: Inputs) -> Tensor:
    slope, start = node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)
    return torch.clamp(slope * inputs[0] + start, 0.0, 1.0)


@operator("Gelu")
def _gelu(node: ir.Node, inputs: Inputs) -> Tensor:
    return F.gelu(inputs[0], approximate=node.attributes.get_string("approximate", "none"))


@operator("Where")
def _where(node: ir.Node, inputs: Inputs) -> Tensor:
    return torch.where(inputs[0], inputs[1], inputs[2])


_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.INT8: torch.int8,
}


@operator("Cast")
def _cast(node: ir.Node, inputs: Inputs) -> Tensor:
    wanted = ir.DataType(node.attributes["to"].as_int())
    if wanted not in _DTYPES:
        raise InputError(f"{node.name} casts to {wanted.name}, which quantization-aware training does not know")
    return inputs[0].to(_DTYPES[wanted])
