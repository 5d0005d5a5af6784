"""A sparse model against the QDQ model it was made from, operation by operation.

Outputs of whole networks hide errors: with random weights they hardly depend on the input. So every operation is
given the very integers its layer reads in the QDQ model, executed literally, and must give the integers its layer
writes there, within one step. What gives real numbers must be right to a small part of them: a mean to one of its
steps, a linear layer to a step of its accumulator and a small part of its largest number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from deploypruner.onnx_file import write_onnx
from deploypruner.records import Check
from deploypruner.runtime import Session
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino
from deploypruner.scratch import scratch
from deploypruner.sparse.custom_ops import DOMAIN
from deploypruner.sparse.gates import Pool, Scale
from deploypruner.sparse.layer import Layer, Operation, QuantizedTensor
from deploypruner.sparse.linear import LinearLayer
from deploypruner.sparse.rewrite import VERSION, from_c4_attributes

Array = NDArray[Any]
Feeds = Sequence[Array]
Open = Callable[[Path], Session]

# Share of a step that a mean may be wrong by.
_MEAN = 1 / 64
# Share of a linear layer's largest number that its numbers may be wrong by, beside a step of the accumulator.
_LINEAR = 1e-4


@dataclass
class _Seen:
    """What one layer gave: largest difference in steps that fusion does not explain, share of values that differ."""

    steps: float = 0.0
    differing: float = 0.0


def verify_operations(
    dense: Path, sparse: Path, layers: Sequence[Operation], feeds: Sequence[Feeds], *, open_sparse: Open | None = None
) -> Check:
    """Compare every operation with its layer, on equal inputs.

    A fused residual addition skips the rounding of a pair; half a step of that pair is added to what is allowed.

    Args:
        dense: The QDQ file.
        sparse: The file made from it.
        layers: Those that went sparse, from `SparseModel.choices`.
        feeds: Inputs of the model.
        open_sparse: How the operations are executed; OpenVINO with our library where None.

    Raises:
        InputError: A file cannot be read.
    """
    open_sparse = open_sparse or (lambda path: OpenVino().open(path))
    with scratch() as folder, _literal(dense, layers) as read:
        apart = folder / "operations.onnx"
        write_onnx(operations_apart(onnx.load(sparse), layers), apart)
        session = open_sparse(apart)
        found = {layer.name: _Seen() for layer in layers}
        for batch in feeds:
            seen = read(batch)
            given = [array for layer in layers for array in _given(layer, seen)]
            for layer, output in zip(layers, session.run(given), strict=True):
                _compare(layer, output, seen, found[layer.name])
    return _within_a_step(dense, found)


def operations_apart(sparse: onnx.ModelProto, layers: Sequence[Operation]) -> onnx.ModelProto:
    """Every operation of ours on its own, with activations in u8, channels last.

    Inputs are what each layer reads, then its residual or the numbers it scales by, layer after layer; outputs
    [N, height, width, channels], of a mean float32 [N, channels, 1, 1].
    """
    ours = {node.name: node for node in sparse.graph.node if node.domain == DOMAIN}
    nodes, inputs, outputs = [], [], []
    for index, layer in enumerate(layers):
        node = onnx.NodeProto()
        node.CopyFrom(ours[layer.name])
        for place, read in zip((0, 5), layer.reads, strict=False):
            name = f"{index}_{place}"
            inputs.append(_images(name, read))
            nodes.append(helper.make_node("ToC4", [name], [f"{name}_c4"], domain=DOMAIN))
            node.input[place] = f"{name}_c4"
        numbers = _numbers_of(layer)
        if numbers:
            place, channels = (1 if isinstance(layer, Scale) else 0), layer.x.channels
            node.input[place] = f"{index}_numbers"
            inputs.append(_numbers(node.input[place], channels))
        nodes.append(node)
        node.output[0] = f"{index}_y"
        if layer.y is None:
            given = len(layer.weights) if isinstance(layer, LinearLayer) else layer.x.channels
            outputs.append(_numbers(f"{index}_y", given))
            continue
        node.output[0] += "_c4"
        c4 = node.output[0]
        nodes.append(helper.make_node("FromC4", [c4], [f"{index}_y"], name=f"{c4}_leave", domain=DOMAIN))
        nodes[-1].attribute.extend(helper.make_attribute(*said) for said in from_c4_attributes(layer.y).items())
        outputs.append(_images(f"{index}_y", layer.y))
    used = {name for node in nodes for name in node.input}
    stored = [tensor for tensor in sparse.graph.initializer if tensor.name in used]
    graph = helper.make_graph(nodes, "operations", inputs, outputs, stored)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, VERSION)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=sparse.ir_version)


@contextmanager
def _literal(dense: Path, layers: Sequence[Operation]) -> Iterator[Callable[[Feeds], dict[str, Array]]]:
    """What runs the QDQ model exactly as written and gives every tensor that `layers` touch, by name."""
    with scratch() as folder:
        path = folder / "literal.onnx"
        write_onnx(_with_outputs(onnx.load(dense), layers), path)
        session = OnnxRuntime().open(path, literal=True)
        given, names = ([spec.name for spec in specs] for specs in (session.inputs, session.outputs))
        yield lambda batch: dict(zip((*given, *names), (*batch, *session.run(batch)), strict=True))


def _images(name: str, activation: QuantizedTensor) -> onnx.ValueInfoProto:
    height, width = activation.size
    return helper.make_tensor_value_info(name, TensorProto.UINT8, ["batch", height, width, activation.channels])


def _numbers(name: str, channels: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", channels, 1, 1])


def _numbers_of(layer: Operation) -> str:
    """The tensor of real numbers that an operation reads, one per channel; "" where there is none."""
    return layer.by if isinstance(layer, Scale) else layer.x.source if isinstance(layer, LinearLayer) else ""


def _result_of(layer: Operation) -> str:
    """The tensor of real numbers that an operation gives."""
    return layer.mean if isinstance(layer, Pool) else layer.result if isinstance(layer, LinearLayer) else ""


def _given(layer: Operation, seen: dict[str, Array]) -> list[Array]:
    """What an operation on its own reads."""
    name = _numbers_of(layer)
    numbers = [seen[name].reshape(len(seen[name]), -1, 1, 1)] if name else []
    return [*(_last(seen[read.name], read) for read in layer.reads), *numbers]


def _with_outputs(dense: onnx.ModelProto, layers: Sequence[Operation]) -> onnx.ModelProto:
    """The QDQ model with every tensor that is compared, or given to an operation, as an output."""
    wanted = [activation.name for layer in layers for activation in layer.touches]
    wanted += [name for layer in layers for name in (_numbers_of(layer), _result_of(layer)) if name]
    graph = onnx.shape_inference.infer_shapes(dense, data_prop=True).graph
    known = {value.name: value for value in (*graph.value_info, *graph.output)}
    del dense.graph.output[:]
    given = {value.name for value in graph.input}
    dense.graph.output.extend(known[name] for name in dict.fromkeys(wanted) if name not in given)
    return dense


def _last(values: Array, activation: QuantizedTensor) -> NDArray[np.uint8]:
    """An integer tensor of the QDQ model as u8 [N, height, width, channels]."""
    u8 = values if values.dtype == np.uint8 else (values.astype(np.int16) + 128).astype(np.uint8)
    if not activation.channels_last:
        return np.ascontiguousarray(u8.transpose(0, 2, 3, 1))
    return np.ascontiguousarray(u8.reshape(len(u8), *activation.size, activation.channels))


def _compare(layer: Operation, output: Array, seen: dict[str, Array], into: _Seen) -> None:
    if isinstance(layer, Pool):
        wrong = np.abs(output.reshape(-1) - seen[layer.mean].reshape(-1)) / layer.x.scale
        into.steps = max(into.steps, float(wrong.max(initial=0)) / _MEAN)
        return
    if isinstance(layer, LinearLayer):
        found, real = output.reshape(len(output), -1), seen[layer.result].reshape(len(output), -1)
        allowed = layer.scale + _LINEAR * np.abs(real).max(initial=0)
        into.steps = max(into.steps, float((np.abs(found - real) / allowed).max(initial=0)))
        return
    assert layer.y is not None, "what gives no real numbers gives an activation"
    want = _last(seen[layer.y.name], layer.y)
    difference = np.abs(output.astype(np.int16) - want)
    explained = 0
    if isinstance(layer, Layer) and layer.skipped is not None:
        # Two numbers half a step of the pair apart round to integers at most this far apart.
        explained = max(0, int(np.ceil(0.5 * layer.skipped.scale / layer.y.scale)) - 1)
    into.steps = max(into.steps, float(difference.max(initial=0)) - explained)
    into.differing = max(into.differing, float((difference > 0).mean()))


def _within_a_step(dense: Path, found: dict[str, _Seen]) -> Check:
    name, worst = max(found.items(), key=lambda item: (item[1].steps, item[1].differing))
    detail = f"steps of u8, {len(found)} operations; in {name} {100 * worst.differing:.2f} % of the values differ"
    label = f"{dense.name} literal = sparse operations"
    return Check(label, max(0.0, worst.steps), 1.0, passed=worst.steps <= 1, detail=detail)
