"""Chains of 1x1 convolutions, narrow -> wide -> narrow, as files for every engine.

The time of a pair of layers is that of a chain of 8 pairs less that of a chain of 2, over 6: what an engine spends on
its input, its output and the call itself falls out. Every layer has weights of its own. Scales follow a sample of
activations through the chain, so that about half of all values are alive in every layer, as after a real ReLU.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.qlinear import to_qlinear
from deploypruner.sparse.convert import sparsify
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.distribution import units_to_keep

LONG, SHORT = 8, 2
DENSE = "dense"
_PIXELS = 256
_STEPS = 255


@dataclass(frozen=True)
class Pair:
    """Channels of the two layers of a pair, and pixels (a square)."""

    narrow: int
    wide: int
    pixels: int

    def __str__(self) -> str:
        return f"{self.narrow}<->{self.wide} @{self.pixels}"


PAIRS = tuple(
    Pair(*sizes)
    for sizes in (
        *((64, 64, 3136), (64, 256, 3136), (128, 512, 784), (256, 1024, 196), (512, 2048, 49), (24, 96, 3136)),
        *((24, 144, 3136), (32, 192, 784), (64, 384, 196), (96, 576, 196), (160, 960, 49), (320, 1280, 49)),
    )
)


@dataclass(frozen=True)
class Layer:
    """One quantized convolution with ReLU.

    Args:
        weights: int8 [out, in].
        weight_steps: float32 [out].
        bias: int32 [out], in steps of input and weight.
        step_in, step_out: Of the activations, whose zero point is 0.
    """

    weights: NDArray[np.int8]
    weight_steps: NDArray[np.float32]
    bias: NDArray[np.int32]
    step_in: float
    step_out: float


def make_layers(pair: Pair, pattern: str, density: float, *, seed: int = 0) -> list[Layer]:
    """The layers of a long chain; a short one is its beginning."""
    rng = np.random.default_rng(seed)
    values = np.abs(rng.standard_normal((_PIXELS, pair.narrow), dtype=np.float32))
    step = float(np.quantile(values, 0.999)) / _STEPS
    drawn = []
    for inputs, outputs in ((pair.narrow, pair.wide), (pair.wide, pair.narrow)):
        weights = rng.standard_normal((outputs, inputs), dtype=np.float32) / np.float32((inputs * density) ** 0.5)
        drawn.append(weights * mask_of(weights, pattern, density))
    layers = []
    for index in range(2 * LONG):
        weights, outputs = _shuffled(drawn[index % 2], rng), len(drawn[index % 2])
        largest = np.abs(weights).max(axis=1)
        steps = np.where(largest > 0, largest, np.median(largest[largest > 0])).astype(np.float32) / 127
        quantized = np.rint(weights / steps[:, None]).astype(np.int8)
        quantized[(quantized == 0) & (weights != 0)] = 1  # as many as were asked for
        real = values @ weights.T
        shift = rng.normal(0, 0.1, outputs) * real.std() - np.median(real, axis=0)
        values = np.maximum(real + shift, 0).astype(np.float32)
        after = float(np.quantile(values, 0.999)) / _STEPS
        layers.append(Layer(quantized, steps, np.rint(shift / (step * steps)).astype(np.int32), step, after))
        step = after
    return layers


def _shuffled(weights: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another layer of the same pattern: rows move within their 16, runs of four inputs within their 64."""
    rows = _moved_within(len(weights), 16, rng)
    quads = _moved_within(weights.shape[1] // 4, 16, rng)
    return weights[rows][:, (4 * quads[:, None] + np.arange(4)).ravel()]


def _moved_within(count: int, block: int, rng: np.random.Generator) -> NDArray[np.int64]:
    starts = range(0, count, block)
    return np.concatenate([start + rng.permutation(min(block, count - start)) for start in starts])


def mask_of(weights: NDArray[np.float32], pattern: str, density: float) -> NDArray[np.bool_]:
    """The largest weights a pattern allows."""
    if pattern == DENSE:
        return np.ones(weights.shape, bool)
    made, saliency = make_pattern(pattern), torch.from_numpy(weights).square()
    (keep,) = units_to_keep(made, [saliency], 1 - density, distribution="uniform")
    return made.units(saliency).mask(saliency, keep).numpy()


def write_chains(folder: Path, pair: Pair, pattern: str, density: float) -> dict[str, dict[int, Path]]:
    """Write what is missing; kind ("openvino", "sparse", "deepsparse") -> pairs -> file."""
    stem = f"{pair.narrow}-{pair.wide}-{pair.pixels}-{pattern}-{density:g}"
    kinds = ("openvino", "sparse", "deepsparse")
    files = {kind: {n: folder / f"{stem}.{n}.{kind}.onnx" for n in (LONG, SHORT)} for kind in kinds}
    if all(path.exists() for by_length in files.values() for path in by_length.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    layers = make_layers(pair, pattern, density)
    for pairs in (LONG, SHORT):
        model = qdq_chain(layers[: 2 * pairs], pair.pixels)
        sparse = sparsify(model, every=True)
        assert sparse.model is not None, f"{stem}: nothing was converted"
        assert sparse.chosen == 2 * pairs, f"{stem}: {sparse.chosen} of {2 * pairs} layers were converted"
        for kind, made in (("openvino", model), ("sparse", sparse.model), ("deepsparse", to_qlinear(model))):
            onnx.save(made, files[kind][pairs])
    return files


def qdq_chain(layers: list[Layer], pixels: int) -> onnx.ModelProto:
    """The layers as quantize_static writes them: float in and out, ReLU done by the unsigned quantizer."""
    side, nodes, weights = isqrt(pixels), [], []

    def constant(name: str, values: ArrayLike) -> str:
        weights.append(numpy_helper.from_array(np.array(values), name))
        return name

    def pair(source: str, name: str, step: float) -> str:
        scale, zero = constant(f"{name}_step", np.float32(step)), constant(f"{name}_zero", np.uint8(0))
        nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{name}_q"], name=f"{name}_q"))
        restore = helper.make_node("DequantizeLinear", [f"{name}_q", scale, zero], [f"{name}_f"], name=f"{name}_d")
        nodes.append(restore)
        return f"{name}_f"

    def restored(name: str, array: NDArray[np.generic], steps: NDArray[np.float32]) -> str:
        inputs = [constant(name, array), constant(f"{name}_steps", steps)]
        inputs.append(constant(f"{name}_zeros", np.zeros(len(steps), array.dtype)))
        nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_f"], name=f"{name}_d", axis=0))
        return f"{name}_f"

    at = pair("x", "x0", layers[0].step_in)
    for index, layer in enumerate(layers):
        w = restored(f"w{index}", layer.weights[:, :, None, None], layer.weight_steps)
        b = restored(f"b{index}", layer.bias, (layer.step_in * layer.weight_steps).astype(np.float32))
        nodes.append(helper.make_node("Conv", [at, w, b], [f"c{index}"], name=f"conv{index}", kernel_shape=[1, 1]))
        at = pair(f"c{index}", f"x{index + 1}", layer.step_out)
    nodes[-1].output[0] = "y"
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, side, side])
        for name, channels in (("x", layers[0].weights.shape[1]), ("y", len(layers[-1].weights)))
    )
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
