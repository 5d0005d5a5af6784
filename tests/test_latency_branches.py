"""Plans without some residual branches: their files, what is bound to a branch, and what they are to take."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import deploypruner as dp
from deploypruner.latency import Profile, build, probes, write_candidate
from deploypruner.latency.cache import Cache, fingerprint
from deploypruner.latency.dropping import unmark
from deploypruner.latency.matching import Branches
from deploypruner.latency.nodes import bind
from deploypruner.latency.overhead import Overhead, find_overhead
from deploypruner.latency.plans import dropping_plans, keep_first, probe_plans
from deploypruner.latency.probes import ProbeFiles
from deploypruner.records import Setting
from deploypruner.runtime import NodeTime, runtimes
from tests.made_up_times import FakeTimer, fake_nodes, replace_timer, true_ms
from tests.nets import conv_bn

pytestmark = pytest.mark.slow

GONE = np.array([], np.int64)
SETTING = Setting("openvino", "fp32", 1)
IMAGE = (1, 3, 8, 8)


class Block(nn.Module):
    """`x + f(x)` with or without a relu after the sum."""

    def __init__(self, channels: int, relu: bool) -> None:
        super().__init__()
        self.inner, self.outer, self.relu = conv_bn(channels, 12), nn.Conv2d(12, channels, 3, padding=1), relu

    def forward(self, x):
        y = x + self.outer(self.inner(x))
        return y.relu() if self.relu else y


class Blocks(nn.Module):
    """Two stages, the second after a shortcut that takes every second pixel and pads with zero channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 8), Block(8, relu=True), Block(8, relu=True)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.c, self.d, self.head = Block(16, relu=False), Block(16, relu=False), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.a(self.stem(x)))
        shortcut = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = self.d(self.c((self.down(x) + shortcut).relu()))
        return self.head(x.mean((2, 3)))


class EndsInASum(nn.Module):
    """The last thing it does is to add a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = conv_bn(3, 8), Block(8, relu=False)

    def forward(self, x):
        return self.a(self.stem(x))


def traced(net=Blocks):
    torch.manual_seed(0)
    return dp.trace(net().eval(), (torch.randn(IMAGE),))


@pytest.fixture(scope="module")
def graph():
    return traced()


@pytest.fixture(scope="module")
def files(graph, tmp_path_factory):
    return ProbeFiles(graph, ["fp32", "int8"], tmp_path_factory.mktemp("probes"), seed=0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def made(graph, monkeypatch, cache):
    replace_timer(monkeypatch, graph)
    return lambda: build.build_latency_model(graph, SETTING, cache=cache, step=2)


def all_sets(graph):
    ids = [branch.id for branch in graph.branches]
    return [gone for count in range(len(ids) + 1) for gone in combinations(ids, count)]


# ---------------------------------------------------------------------- files


def operations(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("gone", [("b", "c"), ("a", "b", "d"), ("a", "b", "c", "d")])
def test_a_file_without_branches_is_what_a_cut_would_have_been_exported_as(graph, files, tmp_path, gone, precision):
    widths = {group.id: group.size - 1 - i % 3 for i, group in enumerate(graph.groups)}
    keep = {**keep_first(graph, widths), **dict.fromkeys(gone, GONE)}
    quick, true = files.write(keep, precision), tmp_path / "true.onnx"
    write_candidate(graph, keep, precision, true)
    assert operations(quick) == operations(true)
    if precision == "fp32":
        onnx.checker.check_model(onnx.load(quick))
        assert [n.op_type for n in onnx.load(quick).graph.node] == [n.op_type for n in onnx.load(true).graph.node]
    feeds = [torch.randn(IMAGE).numpy()]
    answers = [runtimes.get("onnxruntime")().open(path).run(feeds)[0] for path in (quick, true)]
    assert answers[0].shape == answers[1].shape == (1, 5)


def test_what_is_executed_is_the_same_as_of_a_cut(graph, files, tmp_path):
    keep = {"b": GONE, "d": GONE}
    write_candidate(graph, keep, "int8", tmp_path / "true.onnx")
    openvino, feeds = runtimes.get("openvino")(), [torch.randn(IMAGE).numpy()]
    quick, true = (
        # OpenVINO counts whole microseconds, and nothing below one is said to be executed.
        Counter((n.sort, n.shapes) for n in openvino.profile(path, feeds, threads=1, calls=1) if "Conv" in n.kind)
        for path in (files.write(keep, "int8"), tmp_path / "true.onnx")
    )
    assert quick == true
    assert sum(quick.values()) == 6


def test_an_output_keeps_its_name_where_the_branch_it_came_from_goes(tmp_path):
    graph = traced(EndsInASum)
    path = ProbeFiles(graph, ["fp32"], tmp_path, seed=0).write({"a": GONE}, "fp32")
    assert [value.name for value in onnx.load(path).graph.output] == ["output"]
    answer = runtimes.get("onnxruntime")().open(path).run([torch.zeros(IMAGE).numpy()])[0]
    assert answer.shape == (1, 8, 8, 8)


def test_a_file_in_which_a_branch_is_not_to_be_found_is_given_up(tmp_path):
    write_candidate(traced(EndsInASum), {}, "fp32", tmp_path / "plain.onnx")
    assert unmark(onnx.load(tmp_path / "plain.onnx"), 1) is None


def test_without_marks_every_plan_is_exported_and_no_probe_drops_anything(monkeypatch, tmp_path):
    monkeypatch.setattr(probes, "unmark", lambda model, count: None)
    graph = traced(EndsInASum)
    files = ProbeFiles(graph, ["fp32"], tmp_path, seed=0)
    assert not files.drops("fp32")
    assert files.without("fp32") == []
    assert operations(files.write({"a": GONE}, "fp32")) == {"Conv": 1, "Relu": 1}


# ---------------------------------------------------------------------- plans


def test_no_branch_is_dropped_only_where_another_is(graph):
    plans = dropping_plans(graph)
    where = {b.id: {i for i, plan in enumerate(plans) if b.id in plan} for b in graph.branches}
    assert all(where.values())
    assert not any(where[one] <= where[other] for one in where for other in where if one != other)
    assert len(plans) == 4


def test_probes_drop_branches_but_not_the_first_two(graph):
    plans = probe_plans(graph, 8, step=2, seed=0)
    assert [len(graph.dropped(plan)) for plan in plans] == [0, 0, 0, 4, 0, 0, 1, 0]


# ---------------------------------------------------------------------- which operation belongs to which branch

LENGTHS = np.array([[8, 1, 1], [8, 0, 1], [8, 1, 0], [5, 1, 1]])
TWO = Branches({"a": 1, "b": 2}, {})


def bound(present, branches=TWO, size=8):
    node = NodeTime("n", "Layer", ((size,),), "x", 1.0)
    return bind([[node] if here else [] for here in present], LENGTHS, branches)[0]


def test_an_operation_belongs_to_the_branch_without_which_it_is_never_executed():
    found = bound([1, 0, 1, 1])
    assert (found.branch, found.presence, found.understood) == (1, 1.0, True)
    assert bound([1, 1, 0, 1]).branch == 2


def test_dropped_branches_do_not_lower_the_presence_of_their_operations():
    found = bound([1, 0, 1, 0])
    assert (found.branch, found.presence) == (1, pytest.approx(2 / 3))


def test_an_operation_of_no_branch_comes_and_goes_for_its_own_reasons():
    assert bound([1, 1, 1, 1]).branch is None
    rare = bound([0, 0, 0, 1])
    assert (rare.branch, rare.presence) == (None, 0.25)


def test_an_operation_that_follows_a_group_inside_a_branch_belongs_to_it():
    seen = [[NodeTime("n", "Layer", ((size,),), "x", 1.0)] for size in (8, 8, 8, 5)]
    (node,) = bind(seen, LENGTHS, Branches({"a": 1, "b": 2}, {0: 2}))
    assert node.branch == 2


def test_what_only_cold_profiles_show_takes_no_time():
    node = NodeTime("n", "Layer", ((8,),), "x", 1.0)
    steady = NodeTime("m", "Layer", ((8,),), "x", 1.0)
    seen = [[node, steady], [node, steady], [steady], [steady]]
    assert [found.name for found in bind(seen, LENGTHS, warm=2)] == ["m"]
    assert [found.presence for found in bind(seen, LENGTHS)] == [0.5, 1.0]


# ---------------------------------------------------------------------- the model, on a made-up runtime


def test_every_branch_costs_time_and_a_dropped_one_none(made, graph):
    model = made()
    assert len(graph.branches) == 4
    for branch in graph.branches:
        keep = {branch.id: GONE}
        assert model.ms(keep) < model.ms({})
        inside = [layer.ms for layer in model.layers(keep) if layer.name.startswith(f"{branch.id}.")]
        assert inside == [0.0, 0.0]


def test_plans_of_widths_and_blocks_are_predicted(made, graph):
    model, rng = made(), np.random.default_rng(3)
    for gone in all_sets(graph):
        widths = {group.id: int(rng.integers(group.size // 2, group.size + 1)) for group in graph.groups}
        keep = {**keep_first(graph, widths), **dict.fromkeys(gone, GONE)}
        assert model.ms(keep) == pytest.approx(true_ms(graph, keep), rel=0.05)
    assert model.quality.guessed == 0


def test_a_tally_follows_branches_and_widths_in_any_order(made, graph):
    model, rng = made(), np.random.default_rng(0)
    order = {name: rng.permutation(len(atoms)) for name, atoms in graph.atoms.items()}
    tally, keep = model.tally(order), {}
    for name in rng.choice(list(order), 30).tolist():
        branch = name in model.lengths.branches.axes
        widths = np.arange(0 if branch else 1, len(order[name]) + 1)
        swept = tally.sweep(name, widths)
        for width in (widths[0], widths[-1]):
            assert swept[width - widths[0]] == pytest.approx(model.ms({**keep, name: order[name][:width]}))
        keep[name] = np.sort(order[name][: rng.choice(widths)])
        assert tally.keep(name, keep[name]) == pytest.approx(model.ms(keep))
        assert tally.ms == pytest.approx(model.ms(keep))


def test_a_candidate_with_other_names_joins_the_points(made, graph):
    model = made()
    keep = {**keep_first(graph, {group.id: group.size - 1 for group in graph.groups}), "a": GONE, "c": GONE}
    slower = [
        NodeTime(f"renamed {i}", n.kind, n.shapes, n.precisions, n.ns * (3 if "down" in n.name else 1))
        for i, n in enumerate(fake_nodes(graph, keep))
    ]
    total = sum(node.ns for node in slower) / 1e6
    better = model.calibrated(keep, total, Profile(np.array([[total * 1e6, 1e6]]), tuple(slower)))
    assert better.ms(keep) == pytest.approx(total)
    plain = model.calibrated(keep, total)
    fitted, scaled = (
        {layer.name: layer.ms for layer in one.layers(keep)}["down.weight"] / total for one in (better, plain)
    )
    true = next(n.ns for n, m in zip(slower, fake_nodes(graph, keep), strict=True) if "down" in m.name) / total / 1e6
    assert abs(fitted - true) < abs(scaled - true)


# ---------------------------------------------------------------------- what an inference costs beside its operations


def timed(call, each, factor, counted):
    """Profiles of networks that take `call + sum(factor * ns + each)`, and what they take."""
    found = [
        Profile(np.ones((1, 2)), tuple(NodeTime(f"{i}", "Layer", (), "x", ns) for i, ns in enumerate(row)))
        for row in counted
    ]
    return found, [(call + sum(factor * ns + each for ns in row)) / 1e6 for row in counted]


def test_the_cost_of_a_call_and_of_each_operation_are_told_apart():
    rng = np.random.default_rng(0)
    counted = [rng.uniform(2e3, 2e4, size).tolist() for size in (24, 24, 24, 23, 9, 17, 20)]
    profiles, ms = timed(1e4, 700.0, 0.9, counted)
    disturbed = [*ms[:2], ms[2] * 1.5, *ms[3:]]
    for whole in (ms, disturbed):
        found = find_overhead(profiles, whole)
        assert (found.call_ns, found.each_ns) == (pytest.approx(1e4, rel=0.05), pytest.approx(700.0, rel=0.15))
        assert found.factor == pytest.approx(0.9, rel=0.01)
    assert sum(node.ns for node in found.shared_out(profiles[0], ms[0])) == pytest.approx(ms[0] * 1e6 - 1e4, rel=0.05)


def test_few_profiles_say_nothing_about_the_cost_of_a_call():
    profiles, ms = timed(1e4, 700.0, 0.9, [[1e4, 2e4]] * 3)
    assert find_overhead(profiles, ms) == Overhead()
    assert sum(node.ns for node in Overhead().shared_out(profiles[0], 0.05)) == pytest.approx(0.05e6)


# ---------------------------------------------------------------------- numbers of padded channels


def test_what_a_shortcut_pads_before_and_after_is_counted_on_its_own(graph, files):
    keep = {name: np.arange(len(atoms)) for name, atoms in graph.atoms.items()}
    padded = next(g for g in graph.groups if g.id == "down.weight:0")
    keep[padded.id] = np.array([0, 5, 6, 7])
    model = onnx.load(files.write(keep, "fp32"))
    pads = next(node.input[1] for node in model.graph.node if node.op_type == "Pad")
    (amounts,) = (onnx.numpy_helper.to_array(t).tolist() for t in model.graph.initializer if t.name == pads)
    assert amounts == [0, 1, 0, 0, 0, 3, 0, 0]


# ---------------------------------------------------------------------- the cache


def test_a_model_with_branches_comes_back_from_the_cache(made, graph, monkeypatch):
    first, asked = made(), FakeTimer.asked
    monkeypatch.setattr(build, "ProbeFiles", None)
    assert made().ms({"a": GONE}) == first.ms({"a": GONE})
    assert FakeTimer.asked == asked


def test_a_cache_from_before_branches_is_rebuilt(made, cache, tmp_path):
    made()
    (file,) = cache.glob("*.json")
    document = json.loads(file.read_text())
    (tmp_path / file.name).write_text(json.dumps({**document, "format": 3}))
    assert "another format" in Cache(tmp_path, SETTING).remark


def test_fingerprints_differ_where_branches_do(graph):
    assert fingerprint(graph) != fingerprint(replace(graph, branches=graph.branches[1:]))
