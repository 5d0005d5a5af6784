"""Quantization-aware training in a build: asked for by --qat, said, and resumed."""

from __future__ import annotations

import json
from dataclasses import replace
from unittest import mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from deploypruner.build import mixing
from deploypruner.qat import QdqModule
from deploypruner.runtime.on_onnxruntime import OnnxRuntime
from deploypruner.search.mixes import Mixed, MixedFile, MixRequest
from deploypruner.search.mixing import mix
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


def swish_net() -> nn.Module:
    """Behind the first layer ONNX Runtime wants a pair, OpenVINO none."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(IMAGE[0], 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 16, 3, 1, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def with_own_file(request: MixRequest) -> Mixed:
    """In place of times: ONNX Runtime is better off with a file of its own."""
    return replace(mix(request), own={"onnxruntime": MixedFile("onnxruntime", {}, "for this test")})


def test_a_runtimes_own_file_is_trained_as_that_runtime_computes_it(tmp_path):
    save_program(swish_net(), tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    held_out = samples(64, seed=1)[0]
    np.savez(tmp_path / "plain.npz", x=samples(64)[0], x_val=held_out)
    asked = ["compile", "net.pt2", "--data", "plain.npz", "--macs", "0.6", "--epochs", "0", "--no-quantize-repair"]
    with pretended_timings(), mock.patch.object(mixing, "mix", with_own_file):
        plain = run_cli(*asked, "--out", "plain", folder=tmp_path)
        trained = run_cli(*asked, "--qat", "3", "--out", "trained", folder=tmp_path)
    assert (plain.code, trained.code) == (0, 0), trained.err
    precision = json.loads((tmp_path / "trained" / "report.json").read_text())["precision"]
    found = precision["own_qat"]["onnxruntime"]
    assert (found["epochs"], found["after"] > found["before"]) == (3, True)
    assert found != precision["qat"], "each file is trained by itself"
    own = "model.int8.onnxruntime.onnx"
    assert f"{own}: quantization-aware training, 3 epochs" in " ".join(trained.err.split())
    before, after, shared = (
        {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / path).graph.initializer}
        for path in (f"plain/{own}", f"trained/{own}", "trained/model.int8.onnx")
    )
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed
    assert all("_quantized" in name for name in changed), "no scale, no zero point"
    assert len(after) > len(shared), "it has more pairs"
    # What was trained is what ONNX Runtime computes: a tie of rounding apart, in few numbers.
    with torch.no_grad():
        computed = QdqModule(tmp_path / f"trained/{own}").eval()(torch.from_numpy(held_out)).numpy()
    executed = OnnxRuntime().open(tmp_path / f"trained/{own}").run([held_out])[0]
    assert (np.abs(computed - executed) < 1e-5).mean() > 0.97


def test_without_data_there_is_nothing_to_train_on(tmp_path):
    save_program(net(), tmp_path / "net.pt2", torch.zeros(2, *IMAGE))
    outcome = run_cli("compile", "net.pt2", "--macs", "0.6", "--qat", "1", folder=tmp_path)
    assert outcome.code == 2
    assert "quantization-aware training has nothing to train on" in outcome.err
