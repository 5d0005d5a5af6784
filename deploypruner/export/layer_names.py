"""Layers of an ONNX file are called as the module calls them, and so alike in every export of a model.

Exporters number nodes, and weights that they transpose, in passing: "node_MatMul_51" reads "val_52", and in a smaller
network another layer is called so.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from deploypruner.onnx_file import TRANSPOSED, layer_called, rename

_WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))


def name_layers(model: onnx.ModelProto, module: torch.nn.Module) -> onnx.ModelProto:
    """Name layers, and weights that were transposed, by the parameters of the module, in place; return the model.

    The layer of "blocks.0.up.weight" is "blocks.0.up", with ":2" behind where it is called a second time. Where a
    value of the file is called so, which runtimes would take for the layer, its operator stands behind: "up:Gemm".
    What reads no parameter as it is keeps its name.
    """
    graph, state = model.graph, module.state_dict()
    _name_transposed(graph, state)
    values = {name for node in graph.node for name in (*node.input, *node.output)}
    taken = {node.name for node in graph.node}
    for node in graph.node:
        weights = [parameter for name in node.input if (parameter := name.removesuffix(TRANSPOSED)) in state]
        if node.op_type not in _WEIGHTED or not weights:
            continue
        stem = layer_called(weights[0])
        stem = f"{stem}:{node.op_type}" if stem in values else stem
        names = (stem, *(f"{stem}:{number}" for number in range(2, len(taken) + 2)))
        node.name = next(name for name in names if name not in taken)
        taken.add(node.name)
    return model


def _name_transposed(graph: onnx.GraphProto, state: Mapping[str, torch.Tensor]) -> None:
    """Find parameters by their values, in the order of the module where some are equal."""
    left = {name: tensor.detach().cpu().numpy() for name, tensor in state.items() if tensor.ndim == 2}
    read = {name for node in graph.node if node.op_type in _WEIGHTED for name in node.input}
    names = {}
    for tensor in graph.initializer:
        if tensor.name not in read or tensor.name in state or len(tensor.dims) != 2:
            continue
        values = numpy_helper.to_array(tensor)
        found = next((name for name, array in left.items() if np.array_equal(array.T, values)), "")
        if found:
            del left[found]
            names[tensor.name] = f"{found}{TRANSPOSED}"
            tensor.name = names[tensor.name]
    rename(graph, names)
