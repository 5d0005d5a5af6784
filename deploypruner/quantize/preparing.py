"""ONNX models that others exported, brought to the form our quantizer reads."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, version_converter

from deploypruner.errors import InputError, said_by
from deploypruner.runtime.on_onnxruntime import load_errors
from deploypruner.scratch import scratch

# The first IR version whose stored tensors are constants unless they are inputs too.
_CONSTANTS = 4
# The first opset whose QuantizeLinear has scales per channel.
_PER_CHANNEL = 13


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """An equal fp32 model with batch norms folded, constants computed, every node named and shapes inferred.

    Raises:
        InputError: Its opset cannot be raised to 13, or ONNX Runtime cannot load it.
    """
    model = _with_constants(model)
    opset = max(found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))
    if opset < _PER_CHANNEL:
        model = _raised(model, opset)
    _flatten_biases(model.graph)
    with scratch() as folder:
        folded = folder / "folded.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 4  # errors are raised as well
        try:
            onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except load_errors() as error:
            raise InputError(
                f"ONNX Runtime cannot load the model: {said_by(error)}", hint="export it again"
            ) from error
        model = onnx.shape_inference.infer_shapes(onnx.load(folded))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def _with_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its stored tensors as constants: in IR version 3 they are inputs too."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    stored = {tensor.name for tensor in made.graph.initializer}
    kept = [value for value in made.graph.input if value.name not in stored]
    if len(kept) < len(made.graph.input):
        del made.graph.input[:]
        made.graph.input.extend(kept)
        made.ir_version = max(made.ir_version, _CONSTANTS)
    return made


def _flatten_biases(graph: onnx.GraphProto) -> None:
    """Give every Gemm a bias of one number per output, in place; one that differs between rows stays."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for index, node in enumerate(list(graph.node)):
        bias = stored.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) > 2 else None
        weight = stored.get(node.input[1]) if bias is not None else None
        if bias is None or weight is None:
            continue
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        outputs = weight.shape[0 if transposed else 1]
        if bias.shape == (outputs,) or not (bias.size == 1 or bias.size == bias.shape[-1] == outputs):
            continue
        name = f"{node.input[2]}_flat_{index}"
        flat = np.ascontiguousarray(np.broadcast_to(bias.reshape(-1), (outputs,)))
        graph.initializer.append(numpy_helper.from_array(flat, name))
        node.input[2] = name


def _raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _PER_CHANNEL)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model has opset {opset}, and int8 needs {_PER_CHANNEL}: {said_by(error)}",
            hint=f"export it with opset {_PER_CHANNEL} or later",
        ) from error
