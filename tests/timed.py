"""What the tests of measuring time: a convolution in a file, and workers that keep to a script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save_conv(path: Path, channels: int, batch: int | str = 1) -> Path:
    """One 3x3 convolution over 32x32 with as many outputs as inputs."""
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3), dtype=np.float32)
    shape = [batch, channels, 32, 32]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])],
        "conv",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


class Scripted:
    """A worker that takes the same time for every call and notes when it was asked."""

    def __init__(self, name: str, ns: int, log: list[str]) -> None:
        self.name, self.ns, self.log = name, ns, log

    def block(self, calls: int) -> list[int]:
        self.log.append(self.name)
        return [self.ns] * calls


class Unsteady(Scripted):
    """Twice as slow in every other round, so that no ratio settles."""

    def block(self, calls: int) -> list[int]:
        self.ns = 300 - self.ns
        return super().block(calls)
