"""What must be true of every traced network, whatever it is made of."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from deploypruner.channels.allocate import make_plan
from deploypruner.channels.plan import Plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.errors import TraceError
from deploypruner.graph import Graph, trace
from tests.nets import NETS, make

pytestmark = pytest.mark.slow


def random_plan(graph: Graph, seed: int) -> Plan:
    """Remove half of every group, heads and columns alike, at random."""
    rng = np.random.default_rng(seed)
    groups = [g for g in graph.groups if not g.changes_statistics]
    keep = {g.id: np.sort(rng.choice(g.size, g.size - g.size // 2, replace=False)) for g in groups}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], sorted(channels))
    return make_plan(graph, keep, criterion="random", scope="uniform", step=1)


@pytest.mark.parametrize("name", NETS)
def test_masked_equals_removed_over_random_plans(name):
    net, x = make(name)
    graph = trace(net, x)
    for seed in range(3):
        plan = random_plan(graph, seed)
        module, checks = remove_and_prove(graph, plan)
        assert all(check.passed for check in checks), checks
        assert plan.params_after == sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", sorted(set(NETS) - {"unsupported"}))
def test_masking_the_users_own_module_gives_the_removed_output(name):
    """The oracle that shares nothing with the graph but the plan."""
    net, x = make(name)
    graph = trace(net, x)
    plan = random_plan(graph, 0)
    module, _ = remove_and_prove(graph, plan)
    masked = copy.deepcopy(net).double()
    parameters = dict(masked.named_parameters(remove_duplicate=False))  # a tied weight under all its names
    with torch.no_grad():
        for group in graph.groups:
            gone = np.setdiff1d(np.arange(group.size), plan.keep[group.id])
            for member in group.members:
                if member.parameter in parameters and not member.parameter.endswith("original1"):  # 0 / 0
                    rows = torch.as_tensor(member.index[gone].reshape(-1))
                    parameters[member.parameter].index_fill_(member.axis, rows, 0)
        torch.testing.assert_close(copy.deepcopy(module).double()(x.double()), masked(x.double()))


@pytest.mark.parametrize("name", NETS)
def test_the_users_model_is_not_touched(name):
    net, x = make(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph = trace(net, x)
    remove_and_prove(graph, random_plan(graph, 0))
    assert not net.training
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("name", sorted(set(NETS) - {"attention", "einsum", "unsupported"}))
def test_macs_agree_with_torchs_own_counter(name):
    net, x = make(name)
    graph = trace(net, x)
    plan = random_plan(graph, 1)
    module, _ = remove_and_prove(graph, plan)
    for model, counted in ((net, plan.macs_before), (module, plan.macs_after)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model(x)
        assert counter.get_total_flops() == 2 * len(x) * counted


@pytest.mark.parametrize("name", NETS)
def test_the_same_model_gives_the_same_groups(name):
    first, second = (trace(*make(name)) for _ in range(2))
    assert [g.id for g in first.groups] == [g.id for g in second.groups]
    for a, b in zip(first.groups, second.groups, strict=True):
        assert all(np.array_equal(m.index, n.index) for m, n in zip(a.members, b.members, strict=True))


@pytest.mark.parametrize("name", ["residual", "vgg", "squeeze-excite", "shuffle"])
def test_train_and_eval_switch_as_in_the_users_module(name):
    net, x = make(name)
    module = trace(net, x).module
    for mode in (True, False, True):
        net.train(mode)
        module.train(mode)
        for reference in (net, module):
            reference.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            wanted = net(x)
            torch.manual_seed(0)
            got = module(x)
        torch.testing.assert_close(got, wanted)
        wanted.square().sum().backward()
        got.square().sum().backward()
    theirs = dict(module.named_parameters())
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(theirs[key].grad, parameter.grad)
    statistics = dict(net.named_buffers())
    for key, buffer in module.named_buffers():
        torch.testing.assert_close(buffer, statistics[key])


def test_what_stays_whole_is_frozen_with_its_reason():
    graph = trace(*make("unsupported"))
    reasons = {(f.parameter, f.axis): f.reason for f in graph.frozen}
    assert reasons["o.weight", 0] == "fft_fft depends on every position along this axis"
    assert reasons["a.weight", 1] == "model input"
    assert reasons["b.weight", 1] == "state of a recurrent layer"
    assert "roll along this axis" in reasons["b.weight", 0]
    assert [g.id for g in graph.groups] == ["a.weight:0", "d.weight:0"]


def test_a_model_output_is_frozen_and_says_where():
    graph = trace(*make("residual"))
    output = next(f for f in graph.frozen if f.parameter == "head.weight" and f.axis == 0)
    assert (output.count, output.reason) == (5, "model output")


def test_groups_of_a_residual_network_by_hand():
    graph = trace(*make("residual"))
    members = {g.id: {(m.parameter, m.axis) for m in g.members} for g in graph.groups}
    assert members["b.0.weight:0"] == {
        ("b.0.weight", 0),
        ("project.weight", 0),
        ("project.bias", 0),
        ("head.weight", 1),
        *((f"b.1.{p}", 0) for p in ("weight", "bias", "running_mean", "running_var")),
    }
    stem = members["stem.0.weight:0"]
    assert {("a.0.weight", 0), ("a.0.weight", 1), ("b.0.weight", 1), ("project.weight", 1)} <= stem
    assert len(graph.groups) == 2


def test_macs_per_channel_by_hand():
    """One channel of `b` costs a 3x3 row over 16 inputs, a 1x1 row over 16 inputs (8x8 pixels), and 5 weights."""
    group = trace(*make("residual")).group("b.0.weight:0")
    assert group.macs_per_channel == 64 * 16 * 9 + 64 * 16 + 5


def test_zero_padded_shortcuts_tie_only_the_channels_they_carry():
    graph = trace(*make("option a"))
    carried, new = (graph.group(i) for i in ("a.0.weight:0", "b.0.weight:0"))
    rows = {m.parameter: m.index.reshape(-1).tolist() for m in carried.members if m.axis == 0}
    assert rows["a.0.weight"] == list(range(8))
    assert rows["b.0.weight"] == list(range(4, 12))
    assert next(m.index.reshape(-1).tolist() for m in new.members) == [*range(4), *range(12, 16)]


def test_a_depthwise_group_contains_expansion_and_gate():
    graph = trace(*make("squeeze-excite"))
    group = graph.group("expand.0.weight:0")
    assert {("depthwise.0.weight", 0), ("excite.weight", 0), ("squeeze.weight", 1), ("project.weight", 1)} <= {
        (m.parameter, m.axis) for m in group.members
    }


def test_a_layer_norm_over_channels_is_marked():
    net = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16), nn.Linear(16, 5))
    graph = trace(net, torch.randn(2, 12))
    assert [g.changes_statistics for g in graph.groups] == [True]


def test_a_batch_of_one_does_not_bake_the_batch_in():
    net, x = make("residual")
    graph = trace(net, x[:1])
    assert graph.dynamic_batch
    torch.testing.assert_close(graph.module(torch.cat([x, x])), net(torch.cat([x, x])))


def test_an_exported_program_gives_the_groups_of_its_model():
    net, x = make("residual")
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    graph = trace(torch.export.export(net, (x,), dynamic_shapes=dynamic, strict=False), x)
    assert graph.dynamic_batch
    assert [g.id for g in graph.groups] == [g.id for g in trace(net, x).groups]


class Straight(nn.Module):
    """Counts on a batch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        return self.b(self.a(x).relu().view(2, 16))


def test_a_baked_batch_is_traced_as_it_is_and_said():
    graph = trace(Straight().eval(), torch.randn(2, 12))
    assert not graph.dynamic_batch
    assert graph.remarks[0].startswith("the batch size is fixed at the example's: ")
    assert [g.size for g in graph.groups] == [16]


def test_the_examples_tensors_stay_usable_after_a_trace():
    x = torch.randn(2, 12)
    trace(nn.Linear(12, 5).eval(), x)
    torch.export.export(Straight().eval(), (x,), strict=False)
    assert x.shape == (2, 12)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_control_flow_on_values_cannot_be_traced_and_says_why(capfd):
    with pytest.raises(TraceError, match=r"torch.export cannot trace this model: [\s\S]*torch.where or torch.cond"):
        trace(Branching(), torch.ones(2, 3))
    assert capfd.readouterr() == ("", "")


def test_example_inputs_that_do_not_fit_are_named():
    with pytest.raises(TraceError, match=r"does not run on .* of shape \[2, 7\] float32: RuntimeError: mat1"):
        trace(nn.Linear(12, 5), torch.randn(2, 7))
