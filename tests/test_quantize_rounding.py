"""Weights are rounded for what a layer computes, and biases take what the rounding moves."""

from __future__ import annotations

from itertools import product

import numpy as np
import onnx
import onnxruntime
import pytest

from deploypruner.onnx_graph import constant, made_by, operand
from deploypruner.quantize.layers import layers_of
from deploypruner.quantize.rounding import ActivationGrid, adapted_rounding, rounded
from deploypruner.quantize.static import quantize_static
from deploypruner.quantize.weight_grid import largest_by_channel, weight_steps
from tests.int8_nets import Net, chain, graph_of, images, parted, residual, run

RNG = np.random.default_rng(0)


def adapted(weights: list[float], gram: np.ndarray, *, most: float = 100.0) -> np.ndarray:
    rows = np.reshape(np.array(weights), (1, 1, -1))
    return adapted_rounding(rows, np.ones((1, 1, 1)), gram[None], np.full((1, 1, 1), most))[0, 0]


def test_the_error_of_one_weight_goes_into_another_that_reads_the_same_by_hand():
    """0.4 x + 0.4 x = 0.8 x: to the nearest 0 + 0, better is 0 + 1."""
    assert sorted(adapted([0.4, 0.4], np.ones((2, 2)))) == [0, 1]
    assert sorted(adapted([0.4, 0.4], np.eye(2))) == [0, 0]


def test_it_comes_nearer_to_the_best_of_all_roundings_up_or_down_than_to_the_nearest():
    """Weight by weight is no exhaustive search, but a weight may go further than up or down."""
    sums = np.zeros(3)
    for _ in range(30):
        weights, x = RNG.uniform(-3, 3, 6), RNG.standard_normal((50, 6)) @ RNG.standard_normal((6, 6))

        def error(values, weights=weights, x=x):
            return float(np.square(x @ (weights - values)).sum())

        best = min(error(np.floor(weights) + bits) for bits in product((0, 1), repeat=6))
        sums += best, error(adapted(weights.tolist(), x.T @ x)), error(np.round(weights))
    assert sums[1] < sums[0] + 0.5 * (sums[2] - sums[0])


def test_zeros_stay_zeros_and_no_multiple_is_too_large():
    found = adapted([0.0, 0.49, 2.4], np.ones((3, 3)), most=2)
    assert found[0] == 0
    assert np.abs(found).max() <= 2


@pytest.mark.parametrize("made", [chain, residual, parted])
def test_rows_times_weights_are_what_the_layer_computes(made):
    """Ours in numpy against ONNX Runtime, for strides, groups, depthwise, padding and linear layers."""
    model = made()
    graph = graph_of(model)
    layers = layers_of(graph, list(graph))
    assert layers
    for layer in layers:
        shown = onnx.ModelProto()
        shown.CopyFrom(model)
        del shown.graph.output[:]
        shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in (layer.input, layer.node.outputs[0].name))
        session = onnxruntime.InferenceSession(shown.SerializeToString())
        x, y = session.run(None, {"x": images(1)})
        rows = layer.rows(x, 10_000, np.random.default_rng(0))  # every position, in some order
        got = np.matmul(rows, layer.matrix.transpose(0, 2, 1)).transpose(0, 2, 1).reshape(layer.outputs, -1)
        got = got + np.asarray(constant(operand(layer.node, 2)))[:, None]
        want = y[0].reshape(layer.outputs, -1)
        assert np.sort(got, axis=1) == pytest.approx(np.sort(want, axis=1), abs=1e-5)
        stored = np.asarray(constant(operand(layer.node, 1)))
        assert np.array_equal(layer.stored(layer.matrix), stored)


def test_a_shift_of_the_mean_goes_into_the_bias():
    """All inputs are 1 and no weight is a multiple of its step: what the rounding moves is the same for every row."""
    net = Net(["n", 4])
    model = net.model(net.add("Gemm", "x", net.keep([[1.0, 0.3, 0.3, 0.3]]), net.keep([0.0]), transB=1))
    graph = graph_of(model)
    (layer,) = layers_of(graph, list(graph))
    ones = np.ones((1, 8, 4))
    found = rounded(layer, ones, ones, grid=ActivationGrid(0, 1), steps=np.full((1, 1, 1), 0.5))
    assert found.nearest[0, 0].tolist() == [1.0, 0.5, 0.5, 0.5]
    assert found.shifts[0] == pytest.approx([1.9 - 2.5])
    assert found.corrected[0] == pytest.approx(0)
    assert found.errors[0] == pytest.approx(8 * 0.6**2)


def test_the_grids_are_those_of_the_runtime(tmp_path):
    """Ours in numpy against QuantizeLinear and DequantizeLinear in ONNX Runtime."""
    for low, high in ((0.0, 3.7), (-1.3, 2.2), (-4.0, 0.0)):
        grid, x = ActivationGrid(low, high), RNG.uniform(1.2 * low - 0.1, 1.2 * high + 0.1, (1000, 1))
        scale = np.float32((high - low) / 255)
        zero = round(-low / float(scale))
        net = Net(["n", 1])
        pair = net.keep(scale), net.keep(zero, kind=np.uint8)
        model = net.model(net.add("DequantizeLinear", net.add("QuantizeLinear", "x", *pair), *pair))
        off = np.abs(grid.quantized(x) - run(model, x.astype(np.float32)))
        assert np.mean(off < 1e-5) > 0.99  # a value on the border between two may go either way
        assert off.max() < 1.01 * scale


def test_steps_of_channels_and_of_those_without_weights():
    rows = np.array([[1.0, -2.54], [0.0, 0.0], [0.5, 0.1]])
    assert largest_by_channel(rows) == pytest.approx([2.54, 1.52, 0.5])
    assert weight_steps(rows[None], reduce_range=False)[0, :, 0] == pytest.approx([0.02, 1.52 / 127, 0.5 / 127])
    assert weight_steps(rows[None], reduce_range=True)[0, 2, 0] == pytest.approx(0.5 / 64)


@pytest.mark.slow
@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_file_holds_the_weights_as_they_were_rounded(tmp_path, reduce_range):
    onnx.save(residual(), tmp_path / "fp32.onnx")
    calibration = [[images(8, seed=seed)] for seed in range(1, 9)]
    summary = quantize_static(
        *(tmp_path / "fp32.onnx", tmp_path / "int8.onnx"),
        calibration=calibration,
        method="auto",
        reduce_range=reduce_range,
        repair=True,
    )
    steps = {step.name: step for step in summary.repair}
    assert list(steps) == ["equalization", "calibration", "rounding", "bias correction"]
    assert steps["rounding"].kept or reduce_range
    errors = [step.after for step in summary.repair if step.kept]
    assert errors == sorted(errors, reverse=True)
    x = images(64)
    want = run(residual(), x)
    plain = quantize_static(tmp_path / "fp32.onnx", tmp_path / "plain.onnx", calibration=calibration)
    assert plain.repair == ()

    def error(name: str) -> float:
        return float(np.linalg.norm(run(onnx.load(tmp_path / name), x) - want))

    if not reduce_range:
        assert error("int8.onnx") < error("plain.onnx")
    graph = graph_of(onnx.load(tmp_path / "int8.onnx"))
    for node in graph:
        if node.op_type in ("Conv", "Gemm"):
            restore = made_by(operand(node, 1), "DequantizeLinear")
            assert restore is not None
            stored = np.asarray(constant(operand(restore, 0)))
            assert np.abs(stored.astype(int)).max() == (64 if reduce_range else 127)
