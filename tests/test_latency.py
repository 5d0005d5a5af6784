"""The latency model's laws, without timing anything: made-up runtimes, injected times."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch

import deploypruner as dp
from deploypruner.errors import MeasureError
from deploypruner.latency import LatencyModel, Profile, build
from deploypruner.latency.cache import Cache, fingerprint
from deploypruner.latency.cost_surface import Surface
from deploypruner.latency.matching import Follows, Lengths, Matcher
from deploypruner.latency.nodes import bind
from deploypruner.latency.plans import candidate_widths, plans_needed, probe_plans, scattered_plans
from deploypruner.latency.probes import ProbeFiles, undisturbed_ns, write_candidate
from deploypruner.measure.profiling import as_lists, from_lists, profile_file
from deploypruner.records import Setting
from deploypruner.runtime import NodeTime, runtimes
from deploypruner.runtime.onnxruntime_nodes import executed_nodes
from deploypruner.runtime.openvino_nodes import WARM_CALLS, mean_since
from tests.made_up_times import FakeTimer, replace_timer, true_ms
from tests.nets import IMAGE, Residual, SqueezeExcite, Vgg

pytestmark = pytest.mark.slow

SETTING = Setting("openvino", "fp32", 1)


def traced(net=Residual):
    torch.manual_seed(0)
    return dp.trace(net().eval(), (torch.randn(IMAGE),))


# ---------------------------------------------------------------------- which number follows which axis


def test_a_number_that_is_a_multiple_of_a_length_is_found_with_its_factor():
    lengths = np.array([[64, 32], [48, 20], [33, 31]])
    assert Matcher(lengths).find([64 * 49, 48 * 49, 33 * 49]) == Follows(0, 49, 1)
    assert Matcher(lengths).find([8, 5], [0, 1]) == Follows(1, 1, 4)
    assert Matcher(lengths).find([64, 48, 34]) is None


def test_an_equal_length_is_preferred_to_a_multiple():
    lengths = np.array([[8, 16], [4, 8]])
    assert Matcher(lengths).find([16, 8]) == Follows(1, 1, 1)


def test_lengths_count_what_a_cut_leaves():
    graph = traced()
    lengths = Lengths(graph)
    for keep in scattered_plans(graph, 3, seed=1):
        cut = graph.cut(graph.removed(keep))
        assert {cut.get_parameter("stem.0.weight").shape[0]} <= set(lengths.of(keep).tolist())
        assert (lengths.of(keep) <= lengths.whole()).all()


def test_positions_of_lengths_do_not_depend_on_who_asked_for_an_axis_first():
    fresh, used = traced(), traced()
    used.emptied({})
    keep = scattered_plans(used, 1, seed=2)[0]
    assert Lengths(fresh).of(keep).tolist() == Lengths(used).of(keep).tolist()


# ---------------------------------------------------------------------- probes


def test_probe_plans_use_only_allowed_widths_and_begin_dense_and_narrowest():
    graph = traced()
    widths = candidate_widths(graph, 4)
    plans = probe_plans(graph, 8, step=4, seed=0)
    assert len(plans) == 8
    assert all(len(plans[0][g]) == w[0] and len(plans[1][g]) == w[-1] for g, w in widths.items())
    assert all(len(plan[g]) in w for plan in plans for g, w in widths.items())


def sizes_read(model):
    """Per node the sizes of the numbers it has stored; a single one may be written as [] or [1]."""
    sizes = {
        t.name: tuple(t.dims) if np.prod(t.dims) > 1 else () for t in model.graph.initializer if t.data_type == 1
    }
    return [[sizes.get(name) for name in node.input] for node in model.graph.node]


class Heads(torch.nn.Module):
    """Attention whose query and value widths are cut apart: torch takes it to pieces otherwise where they differ."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Conv2d(IMAGE[1], 40, 4, 4)
        self.q, self.k, self.v = (torch.nn.Linear(40, 32) for _ in range(3))
        self.out, self.head = torch.nn.Linear(32, 40), torch.nn.Linear(40, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(y)).mean(1))


@pytest.mark.parametrize("net", [Vgg, SqueezeExcite, Heads])
def test_a_template_writes_what_an_export_would_have_the_shapes_of(net, tmp_path):
    graph = traced(net)
    files = ProbeFiles(graph, ["fp32", "int8"], tmp_path, seed=0)
    keep = probe_plans(graph, 4, step=4, seed=3)[2]
    quick = onnx.load(files.write(keep, "fp32"))
    true = tmp_path / "true.onnx"
    write_candidate(graph, keep, "fp32", true)
    exported = onnx.load(true)
    assert None not in files._templates.values()
    assert [n.op_type for n in quick.graph.node] == [n.op_type for n in exported.graph.node]
    assert sizes_read(quick) == sizes_read(exported)
    onnx.checker.check_model(quick)
    feeds = [torch.randn(1, *IMAGE[1:]).numpy()]
    assert files.write(keep, "int8").is_file()
    assert runtimes.get("onnxruntime")().open(files._folder / "probe.fp32.onnx").run(feeds)[0].shape[0] == 1


# ---------------------------------------------------------------------- surfaces


def test_a_surface_gives_back_what_it_was_made_of():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 17, (40, 2)) * 8
    ns = 1e3 + 2.0 * sizes.prod(axis=1)
    surface = Surface(sizes, ns)
    assert np.abs(surface.ns(sizes[:, surface.columns]) / ns - 1).max() < 0.02


def test_a_surface_predicts_a_staircase_between_its_points():
    rng = np.random.default_rng(1)

    def cost(sizes):
        return 500 + 3.0 * (-(-sizes // 16)).prod(axis=1) * 256

    sizes = rng.integers(1, 33, (60, 2)) * 8
    fresh = rng.integers(1, 33, (60, 2)) * 8
    assert np.median(np.abs(Surface(sizes, cost(sizes)).ns(fresh) / cost(fresh) - 1)) < 0.03


def test_beyond_its_points_a_surface_never_falls_with_width():
    sizes = np.array([[64], [80], [96], [112], [128]])
    surface = Surface(sizes, 100.0 * sizes[:, 0])
    far = surface.ns(np.array([[8], [256], [1024]]))
    assert far[0] < far[1] < far[2]


def test_a_surface_without_sizes_is_the_median():
    surface = Surface(np.zeros((3, 0), np.int64), np.array([5.0, 7.0, 90.0]))
    assert surface.ns(np.zeros((2, 0), np.int64)) == pytest.approx([7.0, 7.0])


def test_equal_columns_of_sizes_count_once():
    sizes = np.array([[8, 8, 3], [16, 16, 3], [24, 24, 5]])
    assert Surface(sizes, np.array([1.0, 2.0, 3.0])).columns == [0, 2]


# ---------------------------------------------------------------------- the model, on a made-up runtime


@pytest.fixture
def made(monkeypatch, tmp_path):
    graph = traced()
    replace_timer(monkeypatch, graph)

    def make(**more):
        return build.build_latency_model(graph, SETTING, cache=tmp_path / "cache", step=2, **more)

    return graph, make, tmp_path / "cache"


def test_the_model_predicts_plans_it_has_not_seen(made):
    graph, make, _ = made
    model = make()
    assert isinstance(model, LatencyModel)
    for keep in scattered_plans(graph, 4, seed=7):
        assert model.ms(keep) == pytest.approx(true_ms(graph, keep), rel=0.05)
    assert model.quality.guessed == 0
    assert sum(layer.ms for layer in model.layers({})) == pytest.approx(model.ms({}))


def test_a_tally_agrees_with_the_model_after_any_changes_and_a_sweep_changes_nothing(made):
    graph, make, _ = made
    model, rng = make(), np.random.default_rng(0)
    order = {g.id: rng.permutation(g.size) for g in graph.groups}
    tally, keep = model.tally(order), {}
    for _ in range(12):
        group = graph.groups[rng.integers(len(graph.groups))]
        widths = np.arange(1, group.size + 1)
        swept = tally.sweep(group.id, widths)
        for width in (1, group.size):
            expected = model.ms({**keep, group.id: np.sort(order[group.id][:width])})
            assert swept[width - 1] == pytest.approx(expected)
        assert tally.ms == pytest.approx(model.ms(keep))
        keep[group.id] = np.sort(order[group.id][: rng.integers(1, group.size + 1)])
        assert tally.keep(group.id, keep[group.id]) == pytest.approx(model.ms(keep))


def test_a_calibrated_model_gives_the_measured_time_and_scales_the_rest(made):
    graph, make, _ = made
    model = make()
    keep, other = scattered_plans(graph, 2, seed=3)
    better = model.calibrated(keep, 2 * model.ms(keep))
    assert better.ms(keep) == pytest.approx(2 * model.ms(keep))
    assert better.ms(other) == pytest.approx(2 * model.ms(other))
    assert model.scale == 1


def test_a_model_survives_its_journey_as_json(made):
    graph, make, _ = made
    model = make().calibrated({}, 7.0)
    again = LatencyModel.from_json(json.loads(json.dumps(model.to_json())), graph, SETTING)
    assert (again.quality, again.scale) == (model.quality, model.scale)
    for keep in scattered_plans(graph, 4, seed=7):
        assert again.ms(keep) == pytest.approx(model.ms(keep), rel=1e-5)  # tenths of nanoseconds
    assert again.to_json() == model.to_json()


def test_the_same_model_again_asks_for_nothing(made, monkeypatch):
    graph, make, _ = made
    first, before = make(), FakeTimer.asked
    monkeypatch.setattr(build, "ProbeFiles", None)
    again = make()
    assert FakeTimer.asked == before
    keep = scattered_plans(graph, 1, seed=5)[0]
    assert again.ms(keep) == first.ms(keep)


def test_a_damaged_cache_is_rebuilt_and_said_once(made):
    _, make, folder = made
    make()
    (file,) = folder.glob("*.json")
    file.write_text("{not json")
    assert "is rebuilt" in make().quality.remarks[0]
    assert make().quality.remarks == ()


def test_a_cache_of_another_device_is_rebuilt(made):
    _, make, folder = made
    make()
    (file,) = folder.glob("*.json")
    document = json.loads(file.read_text())
    document["device"]["cpu"] = "another"
    file.write_text(json.dumps(document))
    assert "another format or device" in Cache(folder, SETTING).remark


def test_little_time_means_few_probes_and_is_said(made):
    _, make, folder = made
    model = make(seconds=0.0)
    assert model.quality.probes == build.FEWEST
    assert f"{build.FEWEST} of {build.PROBES} probes" in model.quality.remarks[0]
    assert not list(folder.glob("*.json"))


def test_fingerprints_differ_with_the_architecture_and_not_with_the_weights():
    assert fingerprint(traced()) == fingerprint(traced())
    assert fingerprint(traced()) != fingerprint(traced(Vgg))


# ---------------------------------------------------------------------- profiles


def test_operations_that_come_and_go_count_by_their_share():
    seen = [[NodeTime("a", "Reorder", ((1, 8),), "x", 10.0)], []]
    (node,) = bind(seen, np.array([[8], [4]]))
    assert node.presence == 0.5
    assert not node.understood


def test_slow_phases_cancel_in_the_ratio_to_the_reference():
    calm = Profile(np.array([[2e6, 1e6]] * 9), ())
    slow = Profile(np.array([[3.6e6, 1.8e6]] * 9), ())
    reference = undisturbed_ns([calm, slow])
    assert slow.ms(reference) == pytest.approx(calm.ms(reference), rel=0.01)


def test_mean_times_leave_out_the_first_calls():
    before, after = {"a": 100e3}, {"a": (100e3 * WARM_CALLS + 10e3 * 7) / (WARM_CALLS + 7)}
    assert mean_since(before, after, 7) == pytest.approx({"a": 10e3})


def test_an_onnxruntime_profile_becomes_nodes_with_stable_names():
    def event(name, index, dur):
        shapes = {"input_type_shape": [{"float": [1, 8]}], "output_type_shape": [{"float": [1, 4]}]}
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "dur": dur,
            "args": {"op_name": "Conv", "node_index": index, **shapes},
        }

    events = [event("conv_1_token_7", "3", d) for d in (90, 50, 50, 20, 22, 21)]
    (node,) = executed_nodes([{"cat": "Session", "name": "x"}, *events])
    assert (node.name, node.kind, node.shapes, node.ns) == ("conv_1", "Conv", ((1, 8), (1, 4)), 21.5e3)


def test_nodes_survive_their_journey_as_json():
    nodes = (NodeTime("a", "Conv+Relu", ((1, 2), (3,)), "u8>u8", 1.5),)
    assert from_lists(json.loads(json.dumps(as_lists(nodes)))) == nodes


def test_a_runtime_without_counters_is_refused(tmp_path):
    class Plain:
        label = "Plain"

    with pytest.raises(MeasureError, match="Plain does not count the time of single operations"):
        profile_file(Plain(), tmp_path, [], threads=1, seconds=0, warm=print)


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_a_runtime_names_every_layer_of_a_small_network(name, tmp_path):
    graph = traced()
    path = tmp_path / "net.onnx"
    write_candidate(graph, {}, "fp32", path)
    nodes = runtimes.get(name)().profile(path, [torch.randn(1, *IMAGE[1:]).numpy()], threads=1, calls=2)
    convolutions = [n for n in nodes if "Conv" in n.kind]
    assert len(convolutions) == 4
    assert len({n.name for n in nodes}) == len(nodes)
    assert all(n.ns > 0 for n in nodes)


def test_no_two_groups_of_the_same_size_are_cut_alike_in_all_learnt_plans():
    conv = torch.nn.Conv2d
    layers = [conv(3, 12, 1), *(conv(12, 12, 1) for _ in range(6)), conv(12, 4, 1)]
    graph = dp.trace(torch.nn.Sequential(*layers).eval(), (torch.randn(2, 3, 4, 4),))
    plans = scattered_plans(graph, 2, seed=0)
    pairs = {group.id: tuple(len(plan[group.id]) for plan in plans) for group in graph.groups}
    assert len(set(pairs.values())) == len(pairs) == 7
    assert all(first != second and 12 not in (first, second) for first, second in pairs.values())


@pytest.mark.parametrize(("size", "number"), [(2, 6), (3, 14), (12, 8)])
def test_as_many_plans_are_learnt_from_as_tell_all_groups_apart(size, number):
    conv = torch.nn.Conv2d
    layers = [conv(3, size, 1), *(conv(size, size, 1) for _ in range(number - 1)), conv(size, 4, 1)]
    graph = dp.trace(torch.nn.Sequential(*layers).eval(), (torch.randn(2, 3, 4, 4),))
    plans = scattered_plans(graph, plans_needed(graph), seed=0)
    widths = {tuple(len(plan[group.id]) for plan in plans) for group in graph.groups}
    assert len(widths) == len(graph.groups) == number
    assert (size,) * len(plans) not in widths
