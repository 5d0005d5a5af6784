"""Gemm and MatMul in the one form that all tools treat alike: alpha and beta 1, a bias of one number per output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from deploypruner.onnx_file import reads

Array = NDArray[Any]


def plain_gemms(graph: onnx.GraphProto) -> None:
    """Bring every Gemm with stored weights to that form, in place; a bias that differs between rows is added behind.

    ONNX Runtime (1.31) leaves beta out where it makes an int8 Gemm of a QDQ one.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for index, node in enumerate(list(graph.node)):
        weight = stored.get(node.input[1]) if node.op_type == "Gemm" and len(node.input) > 1 else None
        bias = stored.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if weight is None or (bias is None and len(node.input) > 2 and node.input[2]):
            continue
        factors = {name: _taken(node, name) for name in ("alpha", "beta")}
        if factors["alpha"] != 1:
            node.input[1] = _store(graph, weight * factors["alpha"], f"{node.input[1]}_scaled_{index}")
        if bias is None:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        outputs = weight.shape[0 if transposed else 1]
        term = bias * np.asarray(factors["beta"], bias.dtype)
        if bias.size != 1 and not bias.size == bias.shape[-1] == outputs:
            _add_behind(graph, node, term)
        elif bias.shape != (outputs,) or factors["beta"] != 1:
            flat = np.broadcast_to(term.reshape(-1), (outputs,))
            node.input[2] = _store(graph, flat, f"{node.input[2]}_flat_{index}")


def broad_biases(graph: onnx.GraphProto) -> None:
    """Give the bias that is added behind a MatMul with stored weights as many axes as the product, in place.

    ONNX Runtime (1.31) makes a Gemm of a MatMul of three axes and a bias of one before it looks for QDQ pairs, and
    has no int8 kernel for a Gemm whose bias is float: ViT-Tiny took 37.8 ms in int8, 27.0 in float, and takes 14.2
    with such biases (Zen 4, one thread, other programs running). OpenVINO fuses either.

    Args:
        graph: With inferred shapes.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    axes = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)}
    products = {node.output[0] for node in graph.node if node.op_type == "MatMul" and node.input[1] in stored}
    made = dict[tuple[str, int], str]()
    for node in graph.node:
        if node.op_type != "Add" or len(products & set(node.input)) != 1:
            continue
        place = 1 if node.input[0] in products else 0
        bias, count = stored.get(node.input[place]), axes.get(node.input[1 - place], 0)
        if bias is None or len(bias.dims) != 1 or count < 3:
            continue
        key = (bias.name, count)
        if key not in made:
            values = numpy_helper.to_array(bias)
            made[key] = _store(graph, values.reshape(*[1] * (count - 1), -1), f"{bias.name}_of_{count}_axes")
        node.input[place] = made[key]
    _remove_unread(graph, {name for name, _ in made})


def _taken(node: onnx.NodeProto, name: str) -> float:
    """The value of a factor, which the node then no longer has."""
    found = [a for a in node.attribute if a.name == name]
    for attribute in found:
        node.attribute.remove(attribute)
    return float(found[0].f) if found else 1.0


def _store(graph: onnx.GraphProto, values: Array, name: str) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(values, order="C"), name))
    return name


def _remove_unread(graph: onnx.GraphProto, names: set[str]) -> None:
    """Remove those of the stored tensors that nothing reads any more, in place; ONNX Runtime warns of them."""
    left = names - {name for node in graph.node for name in reads(node)} - {value.name for value in graph.output}
    for place in reversed(range(len(graph.initializer))):
        if graph.initializer[place].name in left:
            del graph.initializer[place]


def _add_behind(graph: onnx.GraphProto, gemm: onnx.NodeProto, bias: Array) -> None:
    """A Gemm's bias as an addition of its own, in place."""
    output, product = gemm.output[0], f"{gemm.output[0]}_product"
    term = _store(graph, bias, f"{output}_bias")
    del gemm.input[2:]
    gemm.output[0] = product
    at = next(i for i, node in enumerate(graph.node) if product in node.output)
    graph.node.insert(at + 1, helper.make_node("Add", [product, term], [output], name=f"{output}_add"))
