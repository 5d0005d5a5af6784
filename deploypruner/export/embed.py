"""Preprocessing inside the graph: pixels as a camera or a decoder gives them go in, uint8 NHWC."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from deploypruner.errors import InputError
from deploypruner.onnx_file import write_onnx
from deploypruner.sparse.custom_ops import DOMAIN

PIXELS = "pixels"


def embed_preprocessing(source: Path, path: Path, *, mean: Sequence[float], std: Sequence[float]) -> None:
    """Write a model whose only input is `pixels`, uint8 [N, H, W, C], and computes (pixels / 255 - mean) / std first.

    Where nothing but our own operation reads the image, which quantizes it, a table says for each byte what comes of
    all that, and one operation takes pixels to what the first layer reads.

    Args:
        source: ONNX file with one float32 input [N, C, H, W].
        path: File to write.
        mean: C values, of pixels scaled to 0..1.
        std: C values, > 0.

    Raises:
        InputError: The model has another kind of input.
    """
    model = onnx.load(source)
    graph = model.graph
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    sizes = list(inputs[0].type.tensor_type.shape.dim) if len(inputs) == 1 else []
    if len(sizes) != 4 or inputs[0].type.tensor_type.elem_type != TensorProto.FLOAT:
        raise InputError(
            f"'{source.name}' does not take one batch of float images, so no preprocessing can go into it",
            hint="leave out --embed-preprocessing",
        )
    batch, channels, high, wide = sizes
    if channels.dim_value != len(mean):
        raise InputError(f"'{source.name}' has {channels.dim_value} channels, and mean has {len(mean)} values")
    name = inputs[0].name
    values = {
        "preprocess_scale": 1 / (255 * np.asarray(std, np.float64)),
        "preprocess_shift": -np.asarray(mean, np.float64) / np.asarray(std, np.float64),
    }
    for key, value in values.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32).reshape(1, -1, 1, 1), key))
    graph.input.remove(inputs[0])
    shape = [dim.dim_param or dim.dim_value for dim in (batch, high, wide, channels)]
    graph.input.insert(0, helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, shape))
    readers = [node for node in graph.node if name in node.input]
    if readers and all(node.domain == DOMAIN and node.op_type == "QuantizeC4" for node in readers):
        for node in readers:
            _take_pixels(graph, node, *values.values())
        for key in values:
            graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == key))
        write_onnx(model, path)
        return
    steps = [
        helper.make_node("Transpose", [PIXELS], ["pixels_nchw"], "preprocess_transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pixels_nchw"], ["pixels_float"], "preprocess_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_float", "preprocess_scale"], ["pixels_scaled"], "preprocess_mul"),
        helper.make_node("Add", ["pixels_scaled", "preprocess_shift"], [name], "preprocess_add"),
    ]
    for node in reversed(steps):
        graph.node.insert(0, node)
    write_onnx(model, path)


def _take_pixels(graph: onnx.GraphProto, node: onnx.NodeProto, scale: NDArray[Any], shift: NDArray[Any]) -> None:
    """Make a QuantizeC4 a PixelsC4: its table in float32, each step as the nodes it stands for would round it."""
    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    prepared = np.arange(256, dtype=np.float32) * scale.astype(np.float32)[:, None]
    prepared += shift.astype(np.float32)[:, None]
    steps = np.rint(prepared / np.float32(said["scale"])) + np.float32(said["zero_point"])
    table = f"{node.output[0]}_table"
    graph.initializer.append(numpy_helper.from_array(np.clip(steps, 0, 255).astype(np.uint8), table))
    node.op_type = "PixelsC4"
    node.input[:] = [PIXELS, table]
    del node.attribute[:]
