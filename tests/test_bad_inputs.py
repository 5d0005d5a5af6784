"""Data and models that int8 cannot be made of, or that say little: through `quantize` and `compile` alike."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.ao.quantization.fx._decomposed
from torch import Tensor, nn

from deploypruner.latency.sparse_costs import _undisturbed
from tests.builds import Outcome, pretended_timings, run_cli

COMPILE = ("--macs", "0.6", "--step", "1", "--epochs", "0")


class Small(nn.Module):
    """Two convolutions and a classifier, with something in between."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.kind = kind
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 4)
        if kind == "zeros":
            nn.init.zeros_(self.second.weight)
            nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if self.kind == "nan":
            x = torch.log(x - 0.2)
        if self.kind == "int8":
            packed = torch.ops.quantized_decomposed.quantize_per_tensor(x, 0.1, 0, 0, 255, torch.uint8)
            x = torch.ops.quantized_decomposed.dequantize_per_tensor(packed, 0.1, 0, 0, 255, torch.uint8)
        x = self.second(x)
        if self.kind == "zeros":  # and a product of activations, which neither runtime runs in int8 here
            rows = self.first.weight.new_ones(1) * x.flatten(2)
            x = x + (rows @ rows.transpose(1, 2) @ rows).reshape(x.shape) * 1e-3
        return self.head(torch.relu(x).mean((2, 3)))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models and data."""
    folder = tmp_path_factory.mktemp("bad")
    example = (torch.randn(2, 3, 8, 8),)
    open_batch = ({0: torch.export.Dim.DYNAMIC},)
    for kind in ("plain", "nan", "int8", "zeros"):
        program = torch.export.export(Small(kind).eval(), example, dynamic_shapes=open_batch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, folder / f"{kind}.pt2")
    x = np.random.default_rng(0).standard_normal((80, 3, 8, 8)).astype(np.float32)
    holed = x.copy()
    holed[3, 0, 0, 0] = np.nan
    data = {"good": x, "holed": holed, "one": x[:1], "alike": np.repeat(x[:1], 6, axis=0)}
    for name, array in data.items():
        np.savez(folder / f"{name}.npz", x=array)
    return folder


def asked(command: str, folder: Path, model: str, data: str, *more: str) -> Outcome:
    with pretended_timings():
        return run_cli(
            *(
                command,
                f"{model}.pt2",
                "--data",
                f"{data}.npz",
                "--seconds",
                "1",
                "--out",
                f"{command}-{model}-{data}",
            ),
            *(COMPILE if command == "compile" else ()),
            *more,
            folder=folder,
        )


REFUSED = {
    ("plain", "holed"): ("'x' of 'holed' holds NaN or Inf in 1 of 80 samples (first: 3)", "remove or replace"),
    ("plain", "one"): ("'one' has 1 sample, too few for a training and a validation split", "at least two"),
    ("nan", "good"): ("output 'output' of the dense model is NaN for 64 of 64 samples of 'good'", "--mean and --std"),
    ("int8", "good"): ("int8 already", "give the float model"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["quantize", "compile"])
@pytest.mark.parametrize(("model", "data"), REFUSED)
def test_what_no_int8_can_be_made_of_is_refused_with_its_reason(given, command, model, data):
    asked(command, given, model, data).assert_error(2, *REFUSED[model, data])
    assert not (given / f"{command}-{model}-{data}" / "model.int8.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["quantize", "compile"])
def test_data_that_says_little_is_used_and_doubted_and_zeros_and_float_operations_are_no_obstacle(given, command):
    """Six equal samples without labels, with a budget of accuracy; a layer of zeros, and a product of activations."""
    said = asked(command, given, "zeros", "alike", "--accuracy-drop", "90")
    assert said.code == 0, said.err
    doubts = (
        "samples that were looked at are all alike",
        "--accuracy-drop 90 is kept as a relative error against the dense model of at most 90 %, not in points",
        "calibration samples are few",
    )
    document = json.loads(
        (given / f"{command}-zeros-alike" / f"{'quantize' if command == 'quantize' else 'report'}.json").read_text()
    )
    for doubt in doubts:
        assert any(doubt in warning for warning in document["warnings"]), doubt
        assert doubt in " ".join(said.out.split()), doubt
    for early in doubts[:2]:
        assert said.err.index(early) < said.err.index("quantiz")  # before the work that they would spoil
    summary = document["quantization"] if command == "quantize" else document["settings"]["quantization"]["pruned"]
    assert "product of two activations" in summary["left_float"].values()
    assert summary["quantized"] == 3


def test_a_layer_of_zeros_has_its_own_time_and_shares_it_with_no_layer_that_has_steps():
    """By hand: among layers of one shape, the least time of those with about as many steps."""

    class Layer:
        form = "3x3"

        def __init__(self, name: str, steps: int) -> None:
            self.name, self.steps = name, steps

    layers = [Layer("none", 0), Layer("many", 100), Layer("more", 104)]
    times = {"none": 7.0, "many": 50.0, "more": 40.0}
    assert _undisturbed(layers, times, alike=0.05) == {"none": 7.0, "many": 40.0, "more": 40.0}
    assert _undisturbed(layers, times, alike=np.inf) == dict.fromkeys(times, 7.0)
