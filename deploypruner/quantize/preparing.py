"""ONNX models that others exported, brought to the form our quantizer reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
import onnxruntime
from onnx import version_converter

from deploypruner.errors import InputError
from deploypruner.runtime.on_onnxruntime import load_errors

# The first opset whose QuantizeLinear has scales per channel.
_PER_CHANNEL = 13


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """An equal fp32 model with batch norms folded, constants computed, every node named and shapes inferred.

    Raises:
        InputError: Its opset cannot be raised to 13, or ONNX Runtime cannot load it.
    """
    opset = max(found.version for found in model.opset_import if found.domain in ("", "ai.onnx"))
    if opset < _PER_CHANNEL:
        model = _raised(model, opset)
    with tempfile.TemporaryDirectory(prefix="deploypruner-") as folder:
        given, folded = Path(folder) / "given.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, given)
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
        options.log_severity_level = 4  # errors are raised as well
        try:
            onnxruntime.InferenceSession(str(given), options, providers=["CPUExecutionProvider"])
        except load_errors() as error:
            raise InputError(
                f"ONNX Runtime cannot load the model: {str(error).splitlines()[0]}", hint="export it again"
            ) from error
        model = onnx.shape_inference.infer_shapes(onnx.load(folded))
    for index, node in enumerate(model.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return model


def _raised(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    try:
        return version_converter.convert_version(model, _PER_CHANNEL)
    except (RuntimeError, ValueError) as error:
        said = str(error).strip().splitlines()[0]
        raise InputError(
            f"the model has opset {opset}, and int8 needs {_PER_CHANNEL}: {said}",
            hint=f"export it with opset {_PER_CHANNEL} or later",
        ) from error
