"""What ONNX lacks is spelled out, what a runtime computes wrongly is written otherwise, and the rest is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploypruner.errors import TraceError
from deploypruner.export.to_onnx import Onnx

pytestmark = pytest.mark.slow


class Lambda(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def exported(function, x: Tensor, tmp_path: Path) -> dict[str, np.ndarray]:
    """Answers of stock runtimes, for three samples more than it was exported with."""
    path = tmp_path / "m.onnx"
    Onnx().write(Lambda(function).eval(), (x,), path, dynamic_batch=True)
    more = torch.cat([x, x + 1])
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    name = session.get_inputs()[0].name
    return {
        "torch": function(more).numpy(),
        "onnxruntime": session.run(None, {name: more.numpy()})[0],
        "openvino": compiled(more.numpy())[0],
    }


def worst(answers: dict[str, np.ndarray]) -> float:
    """Largest difference of a runtime's answers from torch's, which are of the order of one."""
    for name, found in answers.items():
        assert found.shape == answers["torch"].shape, name
    return max(float(np.abs(answers[name] - answers["torch"]).max()) for name in ("onnxruntime", "openvino"))


def windows(x: Tensor) -> Tensor:
    """[N, 8, 8] -> batch, windows, heads, tokens, columns."""
    return x.view(x.shape[0], 2, 4, 2, 4).transpose(2, 3)


_BIAS = torch.linspace(-1, 1, 16).view(4, 4)
_ATTENTION = {
    "five axes": lambda x: F.scaled_dot_product_attention(windows(x), windows(x * 2), windows(x + 1)),
    "five axes, causal": lambda x: F.scaled_dot_product_attention(windows(x), windows(x), windows(x), is_causal=True),
    "five axes, a bias": lambda x: F.scaled_dot_product_attention(
        windows(x), windows(x), windows(x), _BIAS, scale=0.3
    ),
    "five axes, a mask": lambda x: F.scaled_dot_product_attention(windows(x), windows(x), windows(x), _BIAS > -0.9),
    "three axes": lambda x: F.scaled_dot_product_attention(x, x * 2, x + 1),
}


@pytest.mark.parametrize("name", _ATTENTION)
def test_attention_over_any_number_of_axes_is_exported(name, tmp_path):
    assert worst(exported(_ATTENTION[name], torch.linspace(-1, 1, 128).view(2, 8, 8).sin(), tmp_path)) < 2e-5


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_pairwise_distances_are_exported(p, tmp_path):
    answers = exported(
        lambda x: torch.cdist(x, x[:, :3] * 2 + 1, p=p), torch.linspace(-1, 1, 48).view(2, 6, 4), tmp_path
    )
    assert worst(answers) < 2e-5


_POOLS = {
    "max": lambda x: F.max_pool2d(F.pad(x, [0, 1, 0, 1]), 3, 2),
    "max of more padding than window": lambda x: F.max_pool2d(F.pad(x, [2, 2, 2, 2]), 2),
    "max, padded with ones": lambda x: F.max_pool2d(F.pad(x, [1, 1, 1, 1], value=-1.0), 3),
    "max, padded twice": lambda x: F.max_pool2d(F.pad(x, [0, 2, 0, 2]), 3, 2, padding=1),
    "mean": lambda x: F.avg_pool2d(F.pad(x, [1, 1, 1, 1]), 3, count_include_pad=False),
    "mean of more padding than window": lambda x: F.avg_pool2d(F.pad(x, [2, 2, 2, 2]), 2),
    "mean, ceiling": lambda x: F.avg_pool2d(F.pad(x, [0, 1, 0, 1]), 3, 2, ceil_mode=True),
    "one axis": lambda x: F.max_pool1d(F.pad(x[:, 0], [0, 1]), 3, 2),
}


@pytest.mark.parametrize("name", _POOLS)
def test_a_padding_before_a_pooling_is_computed_rightly_by_both_runtimes(name, tmp_path):
    """All values are below zero, so that a padding of zeros wins every window it is in."""
    assert worst(exported(_POOLS[name], -1.5 + torch.linspace(-1, 1, 98).view(2, 1, 7, 7).cos(), tmp_path)) < 2e-5


def test_what_has_no_counterpart_is_named_with_its_line(tmp_path):
    def inverse(x: Tensor) -> Tensor:
        return torch.linalg.inv(x + 9 * torch.eye(4))

    with pytest.raises(TraceError, match=r"no counterpart of aten\.linalg_inv_ex at tests/test_export_forms\.py:\d+"):
        Onnx().write(Lambda(inverse), (torch.rand(2, 4, 4),), tmp_path / "m.onnx", dynamic_batch=True)


def test_a_pad_that_nothing_pools_is_left_alone(tmp_path):
    Onnx().write(Lambda(lambda x: F.pad(x, [1, 1])), (torch.rand(2, 4),), tmp_path / "m.onnx", dynamic_batch=True)
    pads = [node for node in onnx.load(tmp_path / "m.onnx").graph.node if node.op_type == "Pad"]
    assert [len(node.input) <= 3 for node in pads] == [True]


def idle_reshape(x: Tensor) -> Tensor:
    return (x * 2).reshape(-1, 3, 12).relu() + 1


def equal_chunks(x: Tensor) -> Tensor:
    first, second, third = x.chunk(3, -1)
    return first * second - third


def operations(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def test_a_reshape_to_the_sizes_that_are_there_is_left_out_of_the_file(tmp_path):
    x = torch.linspace(-1, 1, 72).view(2, 3, 12)
    assert worst(exported(idle_reshape, x, tmp_path)) < 1e-6
    assert operations(tmp_path / "m.onnx") == ["Mul", "Relu", "Add"]
    exported(lambda x: x.reshape(-1, 4, 9) + 1, x, tmp_path)
    assert operations(tmp_path / "m.onnx") == ["Reshape", "Add"]


def test_a_reshape_that_is_the_output_stays(tmp_path):
    x = torch.linspace(-1, 1, 72).view(2, 3, 12)
    assert worst(exported(lambda x: x.relu().reshape(-1, 3, 12), x, tmp_path)) < 1e-6


def test_equal_chunks_say_their_sizes_as_unequal_ones_do(tmp_path):
    x = torch.linspace(-1, 1, 72).view(2, 3, 12)
    assert worst(exported(equal_chunks, x, tmp_path)) < 1e-6
    model = onnx.load(tmp_path / "m.onnx")
    (split,) = (node for node in model.graph.node if node.op_type == "Split")
    sizes = {t.name: onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer}
    assert sizes[split.input[1]] == [4, 4, 4]
    assert not [a for a in split.attribute if a.name == "num_outputs"]
    onnx.checker.check_model(model, full_check=True)
