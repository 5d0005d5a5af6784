"""Channels are scaled without a change of what is computed, and ranges hidden in the weights do no harm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from deploypruner.errors import InputError
from deploypruner.onnx_graph import to_model
from deploypruner.quantize.equalize import SIZES, equalizing_factors
from deploypruner.quantize.homogeneous import scalable_channels
from deploypruner.quantize.running import channel_statistics
from deploypruner.quantize.scaling import rescale
from deploypruner.quantize.static import quantize_static
from tests.int8_nets import Net, chain, graph_of, images, parted, residual, run, values


def rescaled(model: onnx.ModelProto, *, decades: float, seed: int = 0) -> onnx.ModelProto:
    """The same function by channels whose ranges are up to so many decades apart."""
    held = ir.from_proto(model)
    found = scalable_channels(held.graph)
    factors = 2.0 ** np.round(np.random.default_rng(seed).uniform(-1, 1, len(found.free)) * decades * 1.66)
    rescale(held.graph, found, np.where(np.isfinite(found.bounds), 1.0, factors))
    return to_model(held)


def int8(model: onnx.ModelProto, folder: Path, *, repair: bool) -> onnx.ModelProto:
    onnx.save(model, folder / "fp32.onnx")
    calibration = [[images(8, seed=seed)] for seed in range(1, 9)]
    quantize_static(folder / "fp32.onnx", folder / "int8.onnx", calibration=calibration, repair=repair)
    return onnx.load(folder / "int8.onnx")


@pytest.mark.parametrize(("made", "sets"), [(chain, 1), (residual, 3), (parted, 1)])
def test_scaled_channels_compute_the_same(made: Callable[[], onnx.ModelProto], sets: int):
    model, x = made(), images(4)
    assert scalable_channels(graph_of(model)).sets == sets
    other = rescaled(model, decades=4)
    want = run(model, x)
    assert np.allclose(run(other, x), want, rtol=0, atol=1e-5 * np.abs(want).max())
    moved = [name for name, kept in values(model).items() if not np.array_equal(kept, values(other)[name])]
    assert len(moved) >= 3


def test_channels_of_a_residual_stream_share_their_factors_and_those_of_a_depthwise_convolution_do_not():
    found = scalable_channels(graph_of(residual()))
    stream, added, deep = found.labels["relu_1"], found.labels["add_5"], found.labels["conv_7"]
    assert np.array_equal(stream, added)
    assert not set(deep.tolist()) & set(stream.tolist())


def test_what_is_not_homogeneous_or_leaves_the_model_keeps_its_scale():
    net = Net(["n", 3, 8, 8])
    swish = net.conv("x", 4, 3)
    swish = net.add("Mul", swish, net.add("Sigmoid", swish))
    assert scalable_channels(graph_of(net.model(net.conv(swish, 2, 4)))).sets == 0
    assert scalable_channels(graph_of(Net(["n", 3, 8, 8]).model("x"))).sets == 0


def test_a_gate_scales_what_the_convolution_behind_it_can_absorb():
    net = Net(["n", 3, 8, 8])
    x = net.add("Relu", net.conv("x", 4, 3))
    gate = net.add("Sigmoid", net.conv(net.add("GlobalAveragePool", x), 4, 4, 1))
    model = net.model(net.conv(net.add("Mul", x, gate), 2, 4))
    assert scalable_channels(graph_of(model)).sets == 1
    assert np.allclose(run(rescaled(model, decades=4), images(4)), run(model, images(4)), rtol=0, atol=1e-5)


def test_the_factors_by_hand():
    """Sizes 1 and 16, weights 4 and 1: once divided, the row gives the first a quarter of what it gives the other."""
    net = Net(["n", 1, 1, 1])
    weight, bias = net.keep(np.reshape([1.0, 16.0], (2, 1, 1, 1))), net.keep([0.0, 0.0])
    hidden = net.add("Relu", net.add("Conv", "x", weight, bias))
    model = net.model(net.add("Conv", hidden, net.keep(np.reshape([4.0, 1.0], (1, 2, 1, 1)))))
    graph = graph_of(model)
    found = scalable_channels(graph)
    seen = channel_statistics(model, found.axes, [[np.ones((1, 1, 1, 1), np.float32)]])
    for size in SIZES:  # all values are equal, and so every size is the same
        factors = equalizing_factors(graph, found, seen, size=size, read=frozenset({"relu_1"}))
        assert found.of("relu_1", factors) == pytest.approx([1 / 0.5, 16.0])


def test_a_clip_lets_channels_grow_as_far_as_they_stay_below_its_bound():
    """Largest values 0.6 and 4 below a bound of 6: with a quarter of room, factors from 0.125 and 0.833 to 1."""
    net = Net(["n", 1, 1, 1])
    weight = net.keep(np.reshape([0.6, 4.0], (2, 1, 1, 1)))
    hidden = net.relu6(net.add("Conv", "x", weight))
    model = net.model(net.add("Conv", hidden, net.keep(np.ones((1, 2, 1, 1)))))
    graph, x = graph_of(model), np.ones((1, 1, 1, 1), np.float32)
    found = scalable_channels(graph)
    seen = channel_statistics(model, found.axes, [[x]])
    factors = equalizing_factors(graph, found, seen, size="largest value", read=frozenset({hidden}))
    ratio = np.sqrt(0.6 * 4) / 4  # the reading row's shares are 0.15 and 1
    assert found.of(hidden, factors) == pytest.approx([max(1.25 * 0.6 / 6, 0.6 / np.sqrt(0.15) / 4), 1.0])
    assert ratio == pytest.approx(0.6 / np.sqrt(0.15) / 4)
    held = ir.from_proto(model)
    rescale(held.graph, found, factors)
    assert run(to_model(held), 1.4 * x) == pytest.approx(run(model, 1.4 * x))  # and on data a little larger


def test_pruned_weights_stay_zero():
    model = residual()
    kept = values(model)
    for tensor in model.graph.initializer:
        weight = kept[tensor.name].copy()
        if weight.ndim == 4:
            weight[::2, ::3] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    before, after = values(model), values(rescaled(model, decades=4))
    assert all(np.array_equal(before[name] == 0, after[name] == 0) for name in before)


@pytest.mark.slow
@pytest.mark.parametrize("made", [chain, residual, parted])
def test_hidden_ranges_ten_thousand_apart_come_out_as_if_there_were_none(made, tmp_path):
    model, x = made(), images(64)
    want = run(model, x)

    def error(given: onnx.ModelProto, *, repair: bool) -> float:
        got = run(int8(given, tmp_path, repair=repair), x)
        return float(np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(axis=0)))

    spoilt = rescaled(model, decades=4)
    assert error(spoilt, repair=False) > 0.1
    assert error(spoilt, repair=True) < 0.04
    assert error(spoilt, repair=True) < 1.5 * error(model, repair=True) + 0.005


@pytest.mark.slow
@pytest.mark.parametrize(
    "batches",
    [
        [images(1)],
        [np.zeros((4, 3, 8, 8), np.float32)] * 3,
        [images(3), np.full((2, 3, 8, 8), 1e6, np.float32)],
    ],
    ids=["one image", "constant activations", "judged on another range"],
)
@pytest.mark.parametrize("emptied", [False, True], ids=["", "a layer of zeros"])
def test_poor_calibration_data_gives_a_model_that_is_no_worse_than_without_repair(tmp_path, batches, emptied):
    model = residual()
    if emptied:
        for tensor in model.graph.initializer:
            if tensor.name == "c4":
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.zeros(tensor.dims, np.float32), "c4"))
    onnx.save(model, tmp_path / "fp32.onnx")
    calibration = [[batch] for batch in batches]
    summary = quantize_static(
        *(tmp_path / "fp32.onnx", tmp_path / "int8.onnx"), calibration=calibration, method="auto", repair=True
    )
    assert summary.samples == sum(map(len, batches))
    assert all(step.after is None or step.after < step.before or not step.kept for step in summary.repair)
    assert np.isfinite(run(onnx.load(tmp_path / "int8.onnx"), images(2))).all()


@pytest.mark.slow
def test_calibration_data_that_is_not_finite_is_refused_with_its_batch(tmp_path):
    onnx.save(chain(), tmp_path / "fp32.onnx")
    broken = images(4)
    broken[1, 0, 0, 0] = np.nan
    with pytest.raises(InputError, match="calibration batch 1 holds NaN or infinite values in input 'x'"):
        quantize_static(
            *(tmp_path / "fp32.onnx", tmp_path / "int8.onnx"), calibration=[[images(4)], [broken]], repair=True
        )
