"""`deploypruner quantize`: int8 alone, from a file or a module, and what it says of bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from deploypruner.build.int8_file import _slower
from deploypruner.quantize.expected_inputs import FirstNorm, doubt, first_norm_of_file, first_norm_of_module
from deploypruner.records import Row
from tests.builds import run_cli
from tests.int8_nets import Net, images, run
from tests.test_quantize_equalize import rescaled


def trained(*, scale: float) -> nn.Module:
    """A convolution with a batch norm that has seen standard normal images times a number."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8, momentum=None), nn.ReLU())
    for _ in range(4):
        net(scale * torch.randn(32, 3, 8, 8))
    return net.eval()


def norm_of(net: nn.Module, x: np.ndarray) -> FirstNorm | None:
    return first_norm_of_module(net, lambda: net(torch.from_numpy(x)))


@pytest.mark.parametrize("scale", [1.0, 50.0, 0.02])
def test_inputs_of_another_range_than_in_training_are_named_with_both(scale):
    x = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    said = doubt(norm_of(trained(scale=scale), x), [x])
    if scale == 1:
        assert said == ""
    else:
        numbers = said.split("about ")[1].split(" are expected")[0].split(" to ")
        assert [float(number) for number in numbers] == pytest.approx([scale * x.min(), scale * x.max()], rel=0.1)
        assert "'1'" in said
        assert f"{x.min():.3g} to {x.max():.3g}" in said


def test_the_same_of_a_file_whose_batch_norm_is_not_folded():
    net = Net(["n", 3, 8, 8])
    hidden = net.conv("x", 4, 3)
    ones, wide = net.keep(np.ones(4)), net.keep(np.full(4, 100.0**2))
    model = net.model(net.add("BatchNormalization", hidden, ones, net.keep(np.zeros(4)), net.keep(np.zeros(4)), wide))
    said = doubt(first_norm_of_file(model, [images(16)]), [images(16)])
    assert "batchnormalization_1" in said
    assert doubt(None, [images(1)]) == ""


def test_a_batch_norm_that_has_seen_nothing_says_nothing():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    assert doubt(norm_of(net, 9 * images(4)), [9 * images(4)]) == ""


def test_the_first_norm_of_a_traced_program_is_that_of_the_module():
    net, x = trained(scale=50.0), images(16)
    program = torch.export.export(net, (torch.from_numpy(x),)).module(check_guards=False)
    of_program, of_module = norm_of(program, x), norm_of(net, x)
    assert of_program.name == of_module.name == "1"
    np.testing.assert_array_equal(of_program.values, of_module.values)
    assert doubt(of_program, [x]) == doubt(of_module, [x]) != ""


def test_samples_that_are_all_alike_are_said_to_be():
    x = np.full((16, 3, 8, 8), 0.25, np.float32)
    said = doubt(norm_of(trained(scale=1.0), x), [x])
    assert "the inputs are 0.25 to 0.25, and all alike to the first batch norm, '1'" in said


def test_too_few_values_say_nothing():
    norm = FirstNorm("n", np.array([1.0]), np.array([2.0]), np.full((7, 1), 900.0))
    assert doubt(norm, [np.ones((7, 1), np.float32)]) == ""
    more = replace(norm, values=np.linspace(800, 900, 8).reshape(8, 1))
    assert "means are 600 of its standard deviations off" in doubt(more, [np.ones((8, 1), np.float32)])


def test_whole_numbers_have_no_range_to_doubt():
    norm = FirstNorm("n", np.array([1.0]), np.array([2.0]), np.linspace(800, 900, 8).reshape(8, 1))
    assert doubt(norm, [np.ones((8, 1), np.int64)]) == ""


def spoilt() -> onnx.ModelProto:
    net = Net(["n", 3, 8, 8], seed=3)
    hidden = net.add("Relu", net.conv(net.add("Relu", net.conv("x", 16, 3)), 16, 16))
    pooled = net.add("Flatten", net.add("GlobalAveragePool", hidden))
    return rescaled(net.model(net.gemm(pooled, 5, 16)), decades=4)


def test_int8_that_does_not_pay_is_said():
    def row(ratio: float, verdict: str) -> Row:
        numbers = {"accuracy": None, "agreement": None, "agreement_kind": "", "median_ms": 2.0, "p95_ms": None}
        more = {"p99_ms": None, "samples": 9, "ratio": ratio, "ratio_ci": (ratio, ratio), "verdict": verdict}
        rest = {
            "same_precision": None,
            "macs": None,
            "params": None,
            "nonzero": None,
            "bytes": 1,
            "peak_rss_bytes": 1,
        }
        return Row("dense int8", "onnx", "openvino", "int8", "dense", 1, **numbers, **more, **rest)

    base = row(1.0, "baseline")
    said = "int8 is slower than m.onnx here (0.76x): deploy that as it is"
    assert _slower([base, row(0.76, "slower")], Path("m.onnx")) == (said,)
    assert _slower([base, row(2.5, "faster")], Path("m.onnx")) == ()


@pytest.mark.slow
def test_a_file_whose_ranges_spoil_int8_is_repaired_or_has_float_layers(tmp_path):
    model, x = spoilt(), images(160)
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=x, y=run(model, x).argmax(axis=1))
    given = ("quantize", "m.onnx", "--data", "d.npz", "--seconds", "1")
    kept = run_cli(*given, "--out", "kept", folder=tmp_path)
    assert kept.code == 0, kept.err
    assert "repair: equalization" in kept.out
    document = json.loads((tmp_path / "kept" / "quantize.json").read_text())
    assert document["quality"]["kept"]
    assert [row["name"] for row in document["rows"]] == ["dense fp32", "dense int8"]
    steps = {step["name"]: step for step in document["quantization"]["repair"]}
    assert steps["equalization"]["after"] < 0.2 * steps["equalization"]["before"]
    mixed = run_cli(*given, "--out", "mixed", "--no-quantize-repair", folder=tmp_path)
    assert mixed.code == 0, mixed.err
    assert "accuracy fell from 100.0 to" in mixed.err  # what int8 everywhere would have cost
    document = json.loads((tmp_path / "mixed" / "quantize.json").read_text())
    assert document["quality"]["kept"]
    assert document["precision"]["accuracy"]["int8"] > 1 >= document["precision"]["accuracy"]["mixed"]
    left = document["quantization"]["left_float"]
    assert left
    assert any(f"left in float: '{next(iter(left))}'" in warning for warning in document["warnings"])
    stored = {t.name: t.data_type for t in onnx.load(tmp_path / "mixed" / "model.int8.onnx").graph.initializer}
    assert {onnx.TensorProto.INT8, onnx.TensorProto.FLOAT} <= set(stored.values())
    again = run_cli("quantize", "kept/model.int8.onnx", "--data", "d.npz", folder=tmp_path)
    assert again.code == 2
    assert "is int8 already: it has QuantizeLinear" in again.err
