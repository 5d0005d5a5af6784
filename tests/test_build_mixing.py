"""A build whose int8 file would lose too much: one layer stays float, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.builds import IMAGE, pretended_timings, run_cli, samples, save_program

pytestmark = pytest.mark.slow


def fragile() -> nn.Module:
    """The second convolution reads one channel 3000 times larger than the others."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(IMAGE[0], 16, 3, 2, 1), nn.Conv2d(16, 16, 3, 1, 1)
    with torch.no_grad():
        first.weight[0] *= 3000
        first.bias[0] *= 3000
        second.weight[:, 0] /= 3000
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), head).eval()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("mixed")
    save_program(fragile(), root / "net.pt2", torch.zeros(2, *IMAGE))
    np.savez(root / "plain.npz", x=samples(48)[0], x_val=samples(64, seed=1)[0])
    with pretended_timings():
        outcome = run_cli(
            *("compile", "net.pt2", "--data", "plain.npz", "--macs", "1.0", "--epochs", "0", "--no-reconstruct"),
            *("--accuracy-drop", "6", "--runtime", "onnxruntime", "--out", "build", "--no-quantize-repair"),
            folder=root,
        )
    assert outcome.code == 0, outcome.err
    return root / "build", outcome.out


def test_the_layer_that_costs_too_much_is_float_in_the_file_and_in_the_report(built):
    folder, out = built
    report = json.loads((folder / "report.json").read_text())
    judged, layers = report["precision"]["accuracy"], report["precision"]["layers"]
    assert judged["int8"] > 6 >= judged["mixed"]
    assert not judged["labelled"]
    kept = [layer for layer in layers if layer["precision"] == "float"]
    assert [layer["name"] for layer in layers].index(kept[0]["name"]) == 1
    assert "of the error that int8 makes at the outputs" in kept[0]["reason"]
    assert max(layers, key=lambda layer: layer["error"]) == kept[0]
    stored = {tensor.name: tensor.data_type for tensor in onnx.load(folder / "model.int8.onnx").graph.initializer}
    assert stored["2.weight"] == onnx.TensorProto.FLOAT
    said = " ".join(out.split())
    assert "precision: model.int8.onnx: 2 of 3 layers int8, 1 layer stays float for the accuracy" in said
    assert "points of relative error against the dense model (the data has no labels)" in said
    assert "Int8 or float, layer by layer" in (folder / "report.html").read_text()
    assert kept[0]["name"] in (folder / "report.html").read_text()
    assert all(check["passed"] for check in report["verification"])


def test_the_accuracy_is_the_active_bound_for_it_alone_decided_something(built):
    folder, out = built
    report = json.loads((folder / "report.json").read_text())
    bounds = report["budget"]["bounds"]
    assert bounds["active"] == "accuracy"
    assert bounds["accuracy"]["decided"] == ["1 layer float"]
    assert bounds["accuracy"]["margin"] == pytest.approx(6 - report["budget"]["quality"]["lost"])
    assert bounds["budget"] == {
        **{"name": "macs", "active": False, "decided": [], "margin": 0.0, "allowed": 100.0},
        "unit": "% of the multiply-adds",
    }
    said = " ".join(out.split())
    assert "bounds: active: accuracy; multiply-adds decided nothing, 0.0 of 100 % left" in said
    assert "Bounds: active: accuracy;" in (folder / "report.html").read_text()
