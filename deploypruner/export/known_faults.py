"""Forms of a graph that a runtime computes wrongly, replaced by others that mean the same.

* ONNX Runtime (PadFusion, seen in 1.31) moves a padding by zeros into the pooling that follows, which pads with minus
  infinity or leaves its padding out of the mean, and may then refuse to load the file for more padding than window.
  It leaves a Pad alone that names its axes.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

_POOLS = frozenset({"MaxPool", "AveragePool", "LpPool"})
# Pad names its axes from here on.
_PAD_AXES_OPSET = 18
_AXES = "pad_axes"


def avoid_known_faults(model: onnx.ModelProto) -> onnx.ModelProto:
    """Rewrite what a runtime is known to compute wrongly, in place, and return the model."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset >= _PAD_AXES_OPSET:
        _name_axes_of_pads(model.graph)
    return model


def _name_axes_of_pads(graph: onnx.GraphProto) -> None:
    pooled = {node.input[0] for node in graph.node if node.op_type in _POOLS}
    stored = {tensor.name: tensor for tensor in graph.initializer}
    made = {node.output[0]: node for node in graph.node if node.op_type == "Constant"}
    for node in graph.node:
        if node.op_type != "Pad" or node.output[0] not in pooled or len(node.input) > 3:
            continue
        size = _length(node.input[1], stored, made)
        if size is None:
            continue  # computed while it runs, which is not moved either
        rank = size // 2
        name = f"{_AXES}_{rank}"
        if name not in stored:
            stored[name] = numpy_helper.from_array(np.arange(rank, dtype=np.int64), name)
            graph.initializer.append(stored[name])
        node.input.extend([""] * (3 - len(node.input)) + [name])


def _length(name: str, stored: dict[str, onnx.TensorProto], made: dict[str, onnx.NodeProto]) -> int | None:
    """Number of values of a constant."""
    if name in stored:
        return int(np.prod(stored[name].dims))
    if name in made:
        return int(numpy_helper.to_array(made[name].attribute[0].t).size) if made[name].attribute else None
    return None
