"""Quantization-aware training in a build: asked for by --qat, said, and resumed."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.builds import IMAGE, pretended_timings, run_cli, samples, save_program

pytestmark = pytest.mark.slow


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(IMAGE[0], 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def test_the_int8_file_is_trained_and_kept_where_it_is_better(tmp_path):
    save_program(net(), tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    np.savez(tmp_path / "plain.npz", x=samples(64)[0], x_val=samples(64, seed=1)[0])
    asked = ["compile", "net.pt2", "--data", "plain.npz", "--macs", "0.6", "--epochs", "0", "--no-quantize-repair"]
    with pretended_timings():
        plain = run_cli(*asked, "--out", "plain", folder=tmp_path)
        trained = run_cli(*asked, "--qat", "3", "--out", "trained", folder=tmp_path)
        again = run_cli(*asked, "--qat", "3", "--out", "trained", "--resume", folder=tmp_path)
    assert (plain.code, trained.code, again.code) == (0, 0, 0), trained.err
    found = json.loads((tmp_path / "trained" / "report.json").read_text())["precision"]["qat"]
    assert found["epochs"] == 3
    assert found["after"] > found["before"]  # of negative distances from the dense outputs
    assert 1 <= found["best_epoch"] <= 3
    assert "quantization-aware training, 3 epochs: validation" in " ".join(trained.err.split())
    held = [
        {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / name / "model.int8.onnx").graph.initializer}
        for name in ("plain", "trained")
    ]
    changed = {name for name in held[0] if not np.array_equal(held[0][name], held[1][name])}
    assert changed
    assert all("_quantized" in name for name in changed)  # no scale, no zero point
    assert "qat" not in json.loads((tmp_path / "plain" / "report.json").read_text())["precision"]


def test_without_data_there_is_nothing_to_train_on(tmp_path):
    save_program(net(), tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    outcome = run_cli("compile", "net.pt2", "--macs", "0.6", "--qat", "1", folder=tmp_path)
    assert outcome.code == 2
    assert "quantization-aware training has nothing to train on" in outcome.err
