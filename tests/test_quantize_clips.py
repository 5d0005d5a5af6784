"""Relu6 and ranges hidden in the weights: such a network, and that its int8 is that of the plain one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks.int8_forms import bounds_by_channel, rescaled
from deploypruner.quantize.equalize import ROOMS, equalizing_factors
from deploypruner.quantize.homogeneous import scalable_channels
from deploypruner.quantize.plain_clips import plain_clips
from deploypruner.quantize.running import channel_statistics
from deploypruner.quantize.static import quantize_static
from tests.int8_nets import Array, Net, graph_of, images, relu6_net, run, values


def off(got: Array, want: Array) -> float:
    """Error of outputs, relative to their spread."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want - want.mean(axis=0)))


def int8(model: onnx.ModelProto, folder: Path, *, repair: bool) -> tuple[onnx.ModelProto, list[str]]:
    onnx.save(model, folder / "fp32.onnx")
    calibration = [[images(8, seed=seed)] for seed in range(1, 17)]
    summary = quantize_static(
        folder / "fp32.onnx", folder / "int8.onnx", calibration=calibration, method="auto", repair=repair
    )
    return onnx.load(folder / "int8.onnx"), [step.done for step in summary.repair if step.kept]


FORMS = {
    "linear parts, plain clips": lambda: rescaled(relu6_net()),
    "bounds by channel": lambda: rescaled(bounds_by_channel(relu6_net())),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_rescaled_relu6_network_computes_the_same(form):
    x = images(16)
    want = run(relu6_net(), x)
    assert np.clip(want, -1e9, 1e9).std() > 0
    assert off(run(FORMS[form](), x), want) < 1e-4


def test_the_clips_of_these_networks_do_cut_values_off():
    """Else a relu would do, and nothing here would be about clips."""
    loose = onnx.ModelProto()
    loose.CopyFrom(relu6_net())
    for tensor in loose.graph.initializer:
        if not tensor.dims and numpy_helper.to_array(tensor) == 6:
            tensor.CopyFrom(numpy_helper.from_array(np.array(1e9, np.float32), tensor.name))
    assert off(run(loose, images(16)), run(relu6_net(), images(16))) > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_int8_of_a_rescaled_relu6_network_is_that_of_the_plain_one(tmp_path, form):
    x = images(64, seed=77)
    want = run(relu6_net(), x)
    spoilt = FORMS[form]()
    plain, _ = int8(relu6_net(), tmp_path, repair=True)
    broken, _ = int8(spoilt, tmp_path, repair=False)
    mended, steps = int8(spoilt, tmp_path, repair=True)
    assert off(run(broken, x), want) > 0.3
    assert off(run(mended, x), want) < 1.5 * off(run(plain, x), want) + 0.005
    if form == "bounds by channel":
        assert steps[0] == "4 bounds that differed by channel made one"
        assert not any(node.op_type == "Min" for node in mended.graph.node)


def test_bounds_by_channel_become_one_clip_and_the_function_stays():
    """By hand: bounds 6 and 0.06 on channels that are 100 apart; their geometric mean is 0.6."""
    net = Net(["n", 1, 1, 1])
    hidden = net.add("Relu", net.add("Conv", "x", net.keep(np.reshape([1.0, 0.01], (2, 1, 1, 1)))))
    hidden = net.add("Min", hidden, net.keep(np.reshape([6.0, 0.06], (1, 2, 1, 1))))
    model = net.model(net.add("Conv", hidden, net.keep(np.reshape([1.0, 200.0], (1, 2, 1, 1)))))
    made, count = plain_clips(model)
    assert count == 1
    (clip,) = (node for node in made.graph.node if node.op_type == "Clip")
    kept = values(made)
    assert float(kept[clip.input[2]]) == pytest.approx(0.6)
    assert [node.op_type for node in made.graph.node] == ["Conv", "Clip", "Conv"]
    first, last = (kept[node.input[1]].ravel() for node in made.graph.node if node.op_type == "Conv")
    assert first == pytest.approx([0.1, 0.1])
    assert last == pytest.approx([10.0, 20.0])
    x = np.reshape([-1.0, 3.0, 5.9, 6.1, 50.0], (5, 1, 1, 1)).astype(np.float32)
    assert run(made, x).ravel() == pytest.approx(run(model, x).ravel(), rel=1e-6)
    assert run(model, x).ravel() == pytest.approx([0, 9, 17.7, 18, 18])


def test_min_before_relu_is_the_same_clip():
    net = Net(["n", 1, 1, 1])
    hidden = net.add("Conv", "x", net.keep(np.reshape([1.0, 0.01], (2, 1, 1, 1))))
    hidden = net.add("Min", net.keep(np.reshape([6.0, 0.06], (1, 2, 1, 1))), hidden)
    hidden = net.add("Max", hidden, net.keep(np.zeros((1, 2, 1, 1))))
    model = net.model(net.add("Conv", hidden, net.keep(np.ones((1, 2, 1, 1)))))
    made, count = plain_clips(model)
    x = np.linspace(-9, 9, 7, dtype=np.float32).reshape(7, 1, 1, 1)
    assert count == 1
    assert run(made, x) == pytest.approx(run(model, x), rel=1e-6)


def bounded_output() -> onnx.ModelProto:
    net = Net(["n", 1, 1, 1])
    hidden = net.add("Relu", net.add("Conv", "x", net.keep(np.reshape([1.0, 0.01], (2, 1, 1, 1)))))
    return net.model(net.add("Min", hidden, net.keep(np.reshape([6.0, 0.06], (1, 2, 1, 1)))))


def negative_bound() -> onnx.ModelProto:
    net = Net(["n", 1, 1, 1])
    hidden = net.add("Relu", net.add("Conv", "x", net.keep(np.reshape([1.0, 0.01], (2, 1, 1, 1)))))
    hidden = net.add("Min", hidden, net.keep(np.reshape([6.0, -0.06], (1, 2, 1, 1))))
    return net.model(net.add("Conv", hidden, net.keep(np.ones((1, 2, 1, 1)))))


def by_place() -> onnx.ModelProto:
    net = Net(["n", 1, 1, 2])
    hidden = net.add("Relu", net.add("Conv", "x", net.keep(np.reshape([1.0, 0.01], (2, 1, 1, 1)))))
    hidden = net.add("Min", hidden, net.keep(np.reshape([6.0, 0.06], (1, 1, 1, 2))))
    return net.model(net.add("Conv", hidden, net.keep(np.ones((1, 2, 1, 1)))))


@pytest.mark.parametrize("made", [bounded_output, negative_bound, by_place, relu6_net])
def test_what_is_no_hidden_relu6_is_left_alone(made):
    model = made()
    same, count = plain_clips(model)
    assert count == 0
    assert same.SerializeToString() == model.SerializeToString()


def test_a_clip_gets_more_room_where_unseen_samples_need_it_and_keeps_what_the_others_give(tmp_path):
    """Channels that lie 10^4 below a clip are enlarged even though unseen samples go beyond those seen by half."""
    net = Net(["n", 1, 1, 1])
    weight = net.keep(np.reshape([4.0, 4e-4], (2, 1, 1, 1)))
    hidden = net.relu6(net.add("Conv", "x", weight))
    model = net.model(net.add("Conv", hidden, net.keep(np.reshape([1.0, 3e4], (1, 2, 1, 1)))))
    graph, x = graph_of(model), np.ones((1, 1, 1, 1), np.float32)
    found = scalable_channels(graph)
    seen = channel_statistics(model, found.axes, [[x]])
    small = {
        room: found.of(
            hidden, equalizing_factors(graph, found, seen, size="largest value", read=frozenset({hidden}), room=room)
        )[1]
        for room in ROOMS
    }
    # Enlarged by 1 / d; the largest value seen, 4e-4, may come up to 6 / room.
    assert all(4e-4 / small[room] <= 6 / room * 1.0001 for room in ROOMS)
    rng = np.random.default_rng(0)
    calm = [[rng.uniform(0, 0.9, (8, 1, 1, 1)).astype(np.float32)] for _ in range(12)]
    wild = [[rng.uniform(0, 1.4, (8, 1, 1, 1)).astype(np.float32)] for _ in range(4)]
    onnx.save(model, tmp_path / "fp32.onnx")
    summary = quantize_static(
        tmp_path / "fp32.onnx", tmp_path / "int8.onnx", calibration=[*calm, *wild], method="auto", repair=True
    )
    (step,) = (step for step in summary.repair if step.name == "equalization")
    assert step.kept
    assert "left alone" not in step.done
    x = rng.uniform(0, 0.9, (64, 1, 1, 1)).astype(np.float32)  # in the range that was seen, all that int8 can hold
    assert off(run(onnx.load(tmp_path / "int8.onnx"), x), run(model, x)) < 0.05
    quantize_static(tmp_path / "fp32.onnx", tmp_path / "plain.onnx", calibration=calm)
    assert off(run(onnx.load(tmp_path / "plain.onnx"), x), run(model, x)) > 0.3
