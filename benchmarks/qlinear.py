"""int8 QDQ to QLinearConv per tensor: the one form in which DeepSparse 1.8 computes convolutions in int8.

    python -m benchmarks.qlinear model.int8.onnx model.deepsparse.onnx

DeepSparse reads QDQ files too, and computes them in float: its `fraction_of_supported_ops` is then near 0, which is
why everything here that runs DeepSparse writes that number down. Per channel it takes twice as long as per tensor.
A weight per tensor is rounded again, from its per-channel value; zeros stay zeros. Activations keep their scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

_OPSET, _IR_VERSION = 13, 8
_INT8_MAX = 127
Constants = dict[str, NDArray[Any]]


def to_qlinear(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every convolution between quantize/dequantize pairs is a QLinearConv.

    What else stands in the graph stays in float between its pairs, as in the QDQ file.
    """
    graph = model.graph
    constants: Constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: list[onnx.NodeProto] = []
    dropped = set[int]()
    for node in graph.node:
        quantize = _only_quantizer(node, readers)
        if node.op_type == "Conv" and quantize is not None and _is_quantized(node, producers):
            nodes.append(_fused(node, quantize, producers, constants))
            dropped.add(id(quantize))
        elif id(node) not in dropped:
            nodes += _older(node, constants)
    _fold_weights(nodes, constants)
    nodes = _live(nodes, [value.name for value in graph.output])
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used]
    made = helper.make_graph(nodes, graph.name, list(graph.input), list(graph.output), weights)
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION)
    onnx.checker.check_model(result)
    return result


def _only_quantizer(node: onnx.NodeProto, readers: dict[str, list[onnx.NodeProto]]) -> onnx.NodeProto | None:
    after = readers.get(node.output[0], [])
    return after[0] if len(after) == 1 and after[0].op_type == "QuantizeLinear" else None


def _is_quantized(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> bool:
    return all(name in producers and producers[name].op_type == "DequantizeLinear" for name in node.input)


def _fused(
    node: onnx.NodeProto, quantize: onnx.NodeProto, producers: dict[str, onnx.NodeProto], constants: Constants
) -> onnx.NodeProto:
    """QLinearConv of one convolution; its weight and bias per tensor become constants."""
    x, w = (producers[name] for name in node.input[:2])
    per_channel, weight_scale = constants[w.input[0]], constants[w.input[1]]
    real = per_channel.astype(np.float64) * weight_scale.reshape(-1, *[1] * (per_channel.ndim - 1))
    step = float(np.abs(real).max()) / _INT8_MAX or 1.0
    names = [f"{node.name}_{part}" for part in ("weight", "step", "zero", "bias")]
    constants[names[0]] = np.rint(real / step).astype(np.int8)
    constants[names[1]] = np.array(step, np.float32)
    constants[names[2]] = np.array(0, np.int8)
    inputs = [*x.input, *names[:3], *quantize.input[1:]]
    if len(node.input) > 2:
        b = producers[node.input[2]]
        bias = constants[b.input[0]].astype(np.float64) * constants[b.input[1]]
        constants[names[3]] = np.rint(bias / (float(constants[x.input[1]]) * step)).astype(np.int32)
        inputs.append(names[3])
    fused = helper.make_node("QLinearConv", inputs, list(quantize.output), name=node.name)
    fused.attribute.extend(node.attribute)
    return fused


def _older(node: onnx.NodeProto, constants: Constants) -> list[onnx.NodeProto]:
    """The node as opset 13 spells it: axes of a mean were an attribute, zeros of a shape were copied."""
    if node.op_type == "ReduceMean" and len(node.input) > 1:
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        axes = constants[node.input[1]].tolist()
        return [helper.make_node("ReduceMean", node.input[:1], node.output, name=node.name, axes=axes, keepdims=keep)]
    if node.op_type == "HardSwish":
        gate = f"{node.output[0]}_gate"
        sigmoid = helper.make_node("HardSigmoid", node.input, [gate], name=f"{node.name}_gate", alpha=1 / 6, beta=0.5)
        return [sigmoid, helper.make_node("Mul", [node.input[0], gate], node.output, name=node.name)]
    if node.op_type == "Reshape":
        return [helper.make_node("Reshape", node.input, node.output, name=node.name)]
    return [node]


def _fold_weights(nodes: list[onnx.NodeProto], constants: Constants) -> None:
    """Constants that are dequantized become constants in float: what stays in float reads float."""
    for node in [node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in constants]:
        stored, scale = constants[node.input[0]], constants[node.input[1]]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if i == axis % stored.ndim and scale.size > 1 else 1 for i in range(stored.ndim)]
        zero = constants[node.input[2]].reshape(shape) if len(node.input) > 2 else 0
        constants[node.output[0]] = ((stored.astype(np.float32) - zero) * scale.reshape(shape)).astype(np.float32)
        nodes.remove(node)


def _live(nodes: list[onnx.NodeProto], outputs: list[str]) -> list[onnx.NodeProto]:
    """Those the outputs need, each after those it reads: the quantizer appends its nodes in no order."""
    makers = {name: node for node in nodes for name in node.output}
    kept: dict[int, onnx.NodeProto] = {}
    stack = [(makers[name], False) for name in outputs]
    while stack:
        node, ready = stack.pop()
        if id(node) in kept:
            continue
        if ready:
            kept[id(node)] = node
        else:
            stack += [(node, True), *((makers[name], False) for name in node.input if name in makers)]
    return list(kept.values())


@click.command()
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@click.argument("target", type=click.Path(path_type=Path))
def main(source: Path, target: Path) -> None:
    """Write TARGET, the QLinearConv form of the int8 QDQ file SOURCE."""
    onnx.save(to_qlinear(onnx.load(source)), target)


if __name__ == "__main__":
    main()
