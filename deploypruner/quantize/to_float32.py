"""Networks in half or double precision, brought to float32, which the quantizer and the int8 kernels know."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from deploypruner.onnx_file import graphs_in, rename

_OTHERS = (TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
_NAMES = {TensorProto.FLOAT16: "float16", TensorProto.BFLOAT16: "bfloat16", TensorProto.DOUBLE: "float64"}
# Attributes that hold a type, of operators that make a tensor of it.
_TYPES = ("to", "dtype")


def float_name(model: onnx.ModelProto) -> str:
    """Type of the largest stored tensor of floats as a row's name has it: "fp32", "float16"."""
    floats = [t for t in model.graph.initializer if t.data_type in (TensorProto.FLOAT, *_OTHERS)]
    largest = max(floats, key=lambda tensor: np.prod(tensor.dims), default=None)
    return "fp32" if largest is None else _NAMES.get(largest.data_type, "fp32")


def to_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that computes in float32 what this one computes in half or double precision.

    Its inputs and outputs keep their types: casts stand at both ends. The model itself where it is float32 already.
    """
    if not _has_other(model.graph):
        return model
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    ends = {"input": _other_values(graph.input, graph), "output": _other_values(graph.output, graph)}
    _rewrite(graph)
    for name, stored in ends["input"].items():
        rename(graph, {name: f"{name}_float32"})
        graph.node.insert(0, helper.make_node("Cast", [name], [f"{name}_float32"], to=TensorProto.FLOAT))
        _set_type(graph.input, name, stored)
    for name, stored in ends["output"].items():
        if name not in ends["input"]:  # an input that is handed through is cast nowhere
            rename(graph, {name: f"{name}_float32"})
            graph.node.append(helper.make_node("Cast", [f"{name}_float32"], [name], to=stored))
        _set_type(graph.output, name, stored)
    return made


def _has_other(graph: onnx.GraphProto) -> bool:
    if any(tensor.data_type in _OTHERS for tensor in graph.initializer):
        return True
    return any(
        (a.HasField("t") and a.t.data_type in _OTHERS) or (a.name in _TYPES and a.i in _OTHERS)
        for node in graph.node
        for a in node.attribute
    ) or any(_has_other(inside) for node in graph.node for inside in graphs_in(node))


def _rewrite(graph: onnx.GraphProto) -> None:
    """Everything inside in float32, in place; types of what is in between are inferred anew."""
    for tensor in graph.initializer:
        _widen(tensor)
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in _OTHERS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen(attribute.t)
            if attribute.name in _TYPES and attribute.i in _OTHERS:
                attribute.i = TensorProto.FLOAT
        for inside in graphs_in(node):
            _rewrite(inside)


def _widen(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in _OTHERS:
        values = numpy_helper.to_array(tensor).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def _other_values(values: object, graph: onnx.GraphProto) -> dict[str, int]:
    """Name -> type of inputs or outputs in another precision; stored ones of IR version 3 are none."""
    stored = {tensor.name for tensor in graph.initializer}
    return {
        value.name: value.type.tensor_type.elem_type
        for value in values  # type: ignore[attr-defined]  # a protobuf container, which has no class to name
        if value.name not in stored and value.type.tensor_type.elem_type in _OTHERS
    }


def _set_type(values: object, name: str, stored: int) -> None:
    next(v for v in values if v.name == name).type.tensor_type.elem_type = stored  # type: ignore[attr-defined]
