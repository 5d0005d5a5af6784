"""ONNX models that others exported, brought to the form our quantizer reads."""

from __future__ import annotations

import onnx
import onnxruntime
from onnx import version_converter

from deploypruner.errors import InputError, said_by
from deploypruner.onnx_file import every_node
from deploypruner.quantize.gemm import plain_gemms
from deploypruner.quantize.placement import WEIGHTED
from deploypruner.quantize.to_float32 import to_float32
from deploypruner.runtime.on_onnxruntime import load_errors
from deploypruner.scratch import scratch

# The first IR version whose stored tensors are constants unless they are inputs too.
_CONSTANTS = 4
# The first opset whose QuantizeLinear has scales per channel.
_PER_CHANNEL = 13


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """An equal float32 model with batch norms folded, constants computed, every node named and shapes inferred.

    Raises:
        InputError: Its opset cannot be raised to 13, ONNX Runtime cannot load it, or no layer could be quantized.
    """
    model = to_float32(_with_constants(model))
    opset = max(found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))
    if opset < _PER_CHANNEL:
        model = _raised(model, opset)
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
        model = onnx.load(folded)
        plain_gemms(model.graph)
        model = onnx.shape_inference.infer_shapes(model)
    _part_ends(model.graph)
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    if not any(node.op_type in WEIGHTED for node in model.graph.node):
        held = any(node.op_type in WEIGHTED for node in every_node(model))
        raise InputError(
            "no layer of the model can be quantized: its convolutions and matrix products stand inside of If or Loop"
            if held
            else "the model has no convolution and no matrix product, and so nothing to quantize",
            hint="export it without the branch" if held else "give the network whose weights have zeros",
        )
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


def _part_ends(graph: onnx.GraphProto) -> None:
    """Let layers read a copy of an input that is an output, too, in place: the quantizer would rename it."""
    for name in {value.name for value in graph.input} & {value.name for value in graph.output}:
        for node in graph.node:
            node.input[:] = [f"{name}_copy" if used == name else used for used in node.input]
        graph.node.insert(0, onnx.helper.make_node("Identity", [name], [f"{name}_copy"]))


def _raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _PER_CHANNEL)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model has opset {opset}, and int8 needs {_PER_CHANNEL}: {said_by(error)}",
            hint=f"export it with opset {_PER_CHANNEL} or later",
        ) from error
