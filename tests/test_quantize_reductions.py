"""Layers behind a mean or a maximum over tokens: OpenVINO computes some of these wrongly once a pair follows them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.export import exporters
from deploypruner.quantize.static import QuantizationSummary, quantize_static
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.runtime.on_openvino import OpenVino

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """Tokens [N, 12, 16] through a layer norm with factors and no shift, pooled, and a linear layer."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool, self.norm, self.head = pool, nn.LayerNorm(16), nn.Linear(16, 5)
        with torch.no_grad():
            self.norm.weight.copy_(torch.linspace(0.3, 2.0, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.head(x.mean(1) if self.pool == "mean" else x.amax(1) if self.pool == "max" else x[:, 0])


class OfImages(nn.Module):
    """A convolution whose image [N, 16, 6, 6] is pooled, and a linear layer."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool, self.conv, self.head = pool, nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.silu(self.conv(x))
        return self.head(x.mean((2, 3)) if self.pool == "mean" else x.amax((2, 3)))


def quantized(net: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[QuantizationSummary, float]:
    """What became int8, and how far OpenVINO is from the file as it is written."""
    fp32, int8 = folder / "fp32.onnx", folder / "int8.onnx"
    x = np.random.default_rng(0).standard_normal((32, *shape)).astype(np.float32)
    exporters.get("onnx")().write(net.eval(), (torch.from_numpy(x[:2]),), fp32, dynamic_batch=True)
    summary = quantize_static(fp32, int8, calibration=[[x]])
    literal = OnnxRuntime().open(int8, literal=True).run([x])[0]
    found = OpenVino().open(int8).run([x])[0]
    return summary, float(np.linalg.norm(found - literal) / np.linalg.norm(literal))


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_what_openvino_would_compute_wrongly_stays_float_and_says_why(pool, tmp_path):
    torch.manual_seed(0)
    summary, error = quantized(Pooled(pool), (12, 16), tmp_path)
    assert error < 1e-4
    assert summary.quantized == 0
    assert list(summary.left_float.values()) == [
        "OpenVINO computes the reduction before it wrongly with int8 behind",
    ]


def test_one_token_of_many_needs_no_such_care(tmp_path):
    torch.manual_seed(0)
    summary, error = quantized(Pooled("first"), (12, 16), tmp_path)
    assert error < 0.01
    assert (summary.quantized, summary.left_float) == (1, {})


def test_behind_a_mean_over_images_the_classifier_is_int8_and_behind_a_maximum_it_is_not(tmp_path):
    torch.manual_seed(0)
    summary, error = quantized(OfImages("mean"), (3, 8, 8), tmp_path)
    assert error < 0.01
    assert summary.quantized == 2
    summary, error = quantized(OfImages("max"), (3, 8, 8), tmp_path)
    assert error < 0.01
    assert (summary.quantized, len(summary.left_float)) == (1, 1)
