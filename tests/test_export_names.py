"""Layers of a file are called as the module calls them, whatever the exporter makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploypruner.export.layer_names import name_layers
from deploypruner.export.to_onnx import Onnx
from deploypruner.quantize.by_weight import layer_weights
from deploypruner.runtime import runtimes
from tests.test_qat import Encoder

pytestmark = pytest.mark.slow
_LAYERS = ("Conv", "Gemm", "MatMul")


class Twice(nn.Module):
    """One layer is called twice; the value that `first` gives is called "linear", as another layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.linear, self.again = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.linear(self.first(x)).relu()) + self.again(x)


def exported(module: nn.Module, x: torch.Tensor, path: Path) -> onnx.ModelProto:
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    Onnx().write(module.eval(), (x,), path, dynamic_batch=True)
    return onnx.load(path)


def test_layers_of_a_transformer_are_named_and_their_weights_are_the_parameters_transposed(tmp_path):
    module = Encoder()
    model = exported(module, torch.zeros(2, 3, 16, 16), tmp_path / "m.onnx")
    products = [node.name for node in model.graph.node if node.op_type in _LAYERS]
    assert [name for name in products if not name.startswith("node_")] == ["patches", "qkv", "proj", "up", "head"]
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name in ("qkv", "proj", "up"):
        weight = module.get_submodule(name).weight.detach().numpy()
        np.testing.assert_array_equal(stored[f"{name}.weight.T"], weight.T)
    assert set(layer_weights(tmp_path / "m.onnx").values()) == {
        f"{name}.weight" for name in ("patches", "qkv", "proj", "up", "head")
    }


def test_a_second_call_is_counted_and_no_layer_is_called_like_a_value(tmp_path):
    model = exported(Twice(), torch.zeros(2, 6), tmp_path / "m.onnx")
    values = {name for node in model.graph.node for name in (*node.input, *node.output)}
    layers = [node.name for node in model.graph.node if node.op_type in _LAYERS]
    assert "linear" in values, "the value is why"
    assert sorted(layers) == ["again", "again:2", "first", "linear:Gemm"]
    assert not values & set(layers)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_tell_their_times_under_these_names(tmp_path, runtime):
    exported(Twice(), torch.zeros(2, 6), tmp_path / "m.onnx")
    nodes = runtimes.get(runtime)().profile(tmp_path / "m.onnx", [np.zeros((1, 6), np.float32)], threads=1, calls=1)
    told = {name for node in nodes for name in (node.name, *node.origins)}
    assert {"first", "linear:Gemm", "again", "again:2"} <= {
        name.split("/")[0].removeprefix("fused ") for name in told
    }


def test_what_reads_no_parameter_keeps_its_name(tmp_path):
    model = exported(Twice(), torch.zeros(2, 6), tmp_path / "m.onnx")
    before = [node.name for node in model.graph.node]
    name_layers(model, nn.Linear(3, 3))
    assert [node.name for node in model.graph.node] == before
