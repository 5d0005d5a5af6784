"""Are the inputs like those of the training? A network's first batch norm has kept how wide its values were."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from deploypruner.onnx_graph import Array
from deploypruner.quantize.calibrate import Feeds
from deploypruner.quantize.running import run

# Times as wide as in training, or as narrow, and standard deviations off, from which on the inputs are doubted.
_WIDE, _OFF = 3.0, 3.0


@dataclass(frozen=True)
class FirstNorm:
    """A batch norm, and what reaches it.

    Args:
        name: Of the layer.
        mean: Learned, per channel [C].
        variance: Learned [C].
        values: What reaches it now [N, C, ...].
    """

    name: str
    mean: Array
    variance: Array
    values: Array

    @property
    def is_trained(self) -> bool:
        """Has it seen data?"""
        return bool(np.any(self.mean != 0) or np.any(self.variance != 1))


def doubt(norm: FirstNorm | None, inputs: Array) -> str:
    """What makes the inputs unlike those of the training, "" where nothing does.

    Args:
        norm: The first batch norm; None where there is none.
        inputs: Those that gave its values.
    """
    if norm is None or not norm.is_trained:
        return ""
    rows = np.moveaxis(norm.values, 1, 0).reshape(len(norm.mean), -1)
    learned = np.sqrt(norm.variance + np.finfo(np.float32).tiny)
    wide = max(float(np.median(rows.std(axis=1) / learned)), 1e-9)  # equal samples have no width
    off = float(np.median(np.abs(rows.mean(axis=1) - norm.mean) / learned))
    if 1 / _WIDE < wide < _WIDE and off < _OFF:
        return ""
    low, high = float(inputs.min()), float(inputs.max())
    seen = f"the calibration inputs are {low:.3g} to {high:.3g}"
    expected = f", about {low / wide:.3g} to {high / wide:.3g} are expected" if not 1 / _WIDE < wide < _WIDE else ""
    return (
        f"{seen}{expected}: the first batch norm, '{norm.name}', has learned from values {1 / wide:.3g} times as "
        f"wide, and means are {off:.3g} of its standard deviations off; check --mean and --std"
    )


def first_norm_of_file(model: onnx.ModelProto, feeds: Feeds) -> FirstNorm | None:
    """The first BatchNormalization of a file with stored statistics, run on a batch."""
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization" and all(name in stored for name in node.input[3:5]):
            mean, variance = (numpy_helper.to_array(stored[name]).astype(float) for name in node.input[3:5])
            (values,) = next(run(model, [feeds], [node.input[0]]))
            return FirstNorm(node.name or node.output[0], mean, variance, values.astype(float))
    return None


def first_norm_of_module(module: object, feeds: Sequence[Array]) -> FirstNorm | None:
    """The first batch norm with running statistics that a module calls on a batch, by position."""
    if not isinstance(module, nn.Module):
        return None
    found: list[FirstNorm] = []

    def keep(name: str) -> object:
        def hook(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            mean, variance = norm.running_mean, norm.running_var
            if not found and isinstance(mean, Tensor) and isinstance(variance, Tensor):
                numbers = (value.detach().double().numpy() for value in (mean, variance, inputs[0]))
                found.append(FirstNorm(name, *numbers))

        return hook

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    hooks = [
        norm.register_forward_pre_hook(keep(name))  # type: ignore[arg-type]  # a hook may give nothing
        for name, norm in module.named_modules()
        if isinstance(norm, kinds)
    ]
    try:
        with torch.no_grad():
            module(*map(torch.from_numpy, feeds))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else None
