"""Error of one layer alone in int8: by hand where a layer is exact, and where one is fragile."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deploypruner.quantize.sensitivity import output_divergence, sensitivities
from deploypruner.quantize.static import calibrate
from tests.test_quantize_mixed import batches, text_file, weight


def test_the_error_of_values_is_relative_to_their_square_and_that_of_classes_a_divergence():
    wanted = np.array([[3.0, 4.0]])
    assert output_divergence(wanted, wanted, classes=False) == 0.0
    assert output_divergence(np.array([[3.0, 3.0]]), wanted, classes=False) == pytest.approx(1 / 25)
    even, odds = np.array([[0.0, 0.0]]), np.array([[math.log(3), 0.0]])
    # Half and half against three quarters and one: 1/2 ln(2/3) + 1/2 ln 2.
    assert output_divergence(odds, even, classes=True) == pytest.approx(0.5 * math.log(4 / 3))
    assert output_divergence(odds + 7, odds, classes=True) == pytest.approx(0.0, abs=1e-12)
    assert output_divergence(np.array([[np.nan, 1.0]]), wanted, classes=False) == math.inf


def test_a_layer_whose_channels_have_unlike_ranges_of_inputs_is_the_fragile_one(tmp_path):
    """One of four activations is 1000 times the others and has weight 1/1000: rounding loses the others."""
    spread = np.diag([1000.0, 1.0, 1.0, 1.0]).astype(np.float32)[:, :, None, None]
    body = "a = Conv (x, u) c = Conv (a, v) z = Conv (c, w)"
    even = (weight(0, 3), weight(1), weight(2))
    file = text_file(
        tmp_path / "a.onnx", body, u=(spread[:, :, 0, 0] @ even[0][:, :, 0, 0])[:, :, None, None],
        v=(even[1][:, :, 0, 0] @ np.linalg.inv(spread[:, :, 0, 0])).astype(np.float32)[:, :, None, None], w=even[2],
    )  # fmt: skip
    seen: list[str] = []
    calibrated = calibrate(file, batches(), folder=tmp_path)
    found = sensitivities(file, calibrated, batches(1), each=seen.append)
    assert seen == ["make_a", "make_c", "make_z"]
    assert max(found, key=lambda layer: found[layer]) == "make_c"
    assert found["make_c"] > 100 * max(found["make_a"], found["make_z"])


def test_a_layer_of_zeros_costs_nothing(tmp_path):
    body = "a = Conv (x, u) c = Conv (a, v) b = Conv (a, w) z = Add (b, c)"
    file = text_file(tmp_path / "b.onnx", body, u=weight(0, 3), v=np.zeros_like(weight(1)), w=weight(2))
    found = sensitivities(file, calibrate(file, batches(), folder=tmp_path), batches(1), layers=["make_c", "make_b"])
    assert found["make_c"] == 0.0 < found["make_b"] < 0.01
