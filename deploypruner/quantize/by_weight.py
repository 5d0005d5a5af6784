"""Layers by the names of their weights, which are those of the module's parameters in every export of a model."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import onnx

from deploypruner.onnx_file import TRANSPOSED
from deploypruner.quantize.islands import WEIGHTED


def weights_of(file: Path, layers: Collection[str]) -> tuple[str, ...]:
    """Names of the weights of some layers, in the order of the file.

    Args:
        file: fp32 .onnx.
        layers: Names of nodes.
    """
    return tuple(weight for layer, weight in layer_weights(file).items() if layer in layers)


def layers_of(file: Path, weights: Collection[str]) -> tuple[str, ...]:
    """Names of the layers with some weights, in the order of the file; those that are gone are left out."""
    return tuple(layer for layer, weight in layer_weights(file).items() if weight in weights)


def layer_weights(file: Path) -> dict[str, str]:
    """Name of each layer of an fp32 .onnx file -> the weight it reads, as the module calls it."""
    graph = onnx.load(file, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    layers = [node for node in graph.node if node.op_type in WEIGHTED]
    found = {str(node.name): next((name for name in node.input if name in stored), "") for node in layers}
    return {layer: weight.removesuffix(TRANSPOSED) for layer, weight in found.items() if weight}
