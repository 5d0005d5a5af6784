"""Are the inputs like those of the training? A network's first batch norm has kept how wide its values were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploypruner.onnx_graph import Array
from deploypruner.quantize.calibrate import Feeds
from deploypruner.quantize.running import run

# Times as wide as in training, or as narrow, and standard deviations off, from which on the inputs are doubted.
_WIDE, _OFF = 3.0, 3.0
# Times as wide as in training below which nothing varies at all; values of a channel below which none of it is said.
_ALIKE, _LEAST = 1e-6, 8


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


def doubt(norm: FirstNorm | None, inputs: Sequence[Array]) -> str:
    """What makes the inputs unlike those of the training, "" where nothing does.

    Args:
        norm: The first batch norm; None where there is none.
        inputs: Those that gave its values, one array per input of the model.
    """
    floats = [array for array in inputs if array.dtype.kind == "f"]
    if norm is None or not norm.is_trained or not floats or len(norm.mean) == 0:
        return ""
    rows = np.moveaxis(norm.values, 1, 0).reshape(len(norm.mean), -1)
    if rows.shape[1] < _LEAST or not np.isfinite(rows).all():  # values that are not finite are refused elsewhere
        return ""
    low, high = min(float(array.min()) for array in floats), max(float(array.max()) for array in floats)
    learned = np.sqrt(norm.variance + np.finfo(np.float32).tiny)
    wide = float(np.median(rows.std(axis=1) / learned))
    off = float(np.median(np.abs(rows.mean(axis=1) - norm.mean) / learned))
    seen = f"the inputs are {low:.3g} to {high:.3g}"
    if wide < _ALIKE:
        return (
            f"{seen}, and all alike to the first batch norm, '{norm.name}': nothing can be learned from them; check "
            "the data"
        )
    if 1 / _WIDE < wide < _WIDE and off < _OFF:
        return ""
    expected = f", about {low / wide:.3g} to {high / wide:.3g} are expected" if not 1 / _WIDE < wide < _WIDE else ""
    return (
        f"{seen}{expected}: the first batch norm, '{norm.name}', has learned from values {1 / wide:.3g} times as "
        f"wide, and means are {off:.3g} of its standard deviations off; check --mean and --std of images, or how "
        "arrays were prepared"
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


def first_norm_of_module(module: object, runs: Callable[[], object]) -> FirstNorm | None:
    """The first batch norm with running statistics that a module calls: as a layer, or inside a traced graph.

    Args:
        module: The module, whose buffers name the layer.
        runs: Runs it on a batch; is left at the first batch norm.
    """
    buffers = dict(module.named_buffers()) if isinstance(module, nn.Module) else {}
    watch = _NormWatch({buffer.data_ptr(): name for name, buffer in buffers.items()})
    with torch.no_grad(), suppress(_FirstSeen), watch:
        runs()
    return watch.found


class _FirstSeen(BaseException):
    """The first batch norm was called; nothing that expects errors of the model takes it for one."""


class _NormWatch(TorchDispatchMode):
    """Looks at every operator until the first that normalizes with running statistics.

    Args:
        names: Address of a buffer's values -> its name.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self._names = names
        self.found: FirstNorm | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, unless it is the one that is looked for."""
        names = [argument.name for argument in func._schema.arguments]
        if self.found is None and "running_mean" in names:
            given = dict(zip(names, args, strict=False)) | (kwargs or {})
            mean, variance = given["running_mean"], given["running_var"]
            if isinstance(mean, Tensor) and isinstance(variance, Tensor):
                name = self._names.get(mean.data_ptr(), "").removesuffix(".running_mean")
                numbers = (value.detach().double().numpy() for value in (mean, variance, given["input"]))
                self.found = FirstNorm(name or "unnamed", *numbers)
                raise _FirstSeen("the first batch norm")
        return func(*args, **(kwargs or {}))
