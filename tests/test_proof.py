"""The proof of a removal: it passes for every right one, and a wrong one is caught and named."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from deploypruner.errors import VerificationError
from deploypruner.graph import Graph, trace
from deploypruner.graph.module import get_state
from deploypruner.graph.nodes import op_name, set_argument
from deploypruner.prune import memory, proof
from deploypruner.prune.allocate import make_plan
from deploypruner.prune.oracle import Masked
from deploypruner.prune.plan import Plan
from deploypruner.prune.probes import probe
from deploypruner.prune.proof import compare_modules, prove
from deploypruner.prune.remove import remove, remove_and_prove
from deploypruner.prune.streamed import Converted, Streamed
from deploypruner.records import Check
from tests.builds import COMPILE, run_cli
from tests.nets import NETS, make
from tests.statistics_nets import STATISTICS_NETS, Words, make_statistics, settled


def random_plan(graph: Graph, seed: int) -> Plan:
    """Remove a third of every group at random: heads and columns alike, and channels that change a statistic."""
    rng = np.random.default_rng(seed)
    keep = {g.id: np.sort(rng.choice(g.size, g.size - max(1, g.size // 3), replace=False)) for g in graph.groups}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], sorted(channels))
    return make_plan(graph, keep, criterion="random", scope="uniform", step=1)


def proved(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
    module = graph.cut(graph.removed(plan.keep))
    return module, prove(graph, plan, module)


def rewired(graph: Graph, change: Callable[[GraphModule], None]) -> Graph:
    """The same graph with a remover that goes wrong."""

    def cut(removed: np.ndarray) -> nn.Module:
        module = graph.cut(removed)
        assert isinstance(module, GraphModule)
        change(module)
        module.recompile()
        return module

    return dataclasses.replace(graph, cut=cut)


def on_op(name: str, argument: str, value: object) -> Callable[[GraphModule], None]:
    """Set one argument of the first call of an operator."""

    def change(module: GraphModule) -> None:
        node = next(n for n in module.graph.nodes if op_name(n) == name)
        set_argument(node, argument, value)

    return change


# ---------------------------------------------------------------------- right removals


@pytest.mark.parametrize("name", STATISTICS_NETS)
def test_statistics_over_what_is_kept_prove_the_removal_exactly(name):
    graph = trace(*make_statistics(name))
    for seed in range(3):
        plan = random_plan(graph, seed)
        _, checks = proved(graph, plan)
        assert len(checks) == 2
        for check in checks:
            assert check.passed, check
            assert check.max_abs_diff <= 1e-12
            assert check.detail.startswith("outputs differ by "), check


@pytest.mark.parametrize("name", STATISTICS_NETS)
def test_every_statistics_net_has_something_to_prune(name):
    graph = trace(*make_statistics(name))
    assert graph.groups
    if name in ("layer norm", "rms norm", "group norm", "global response", "channel attention"):
        assert any(g.changes_statistics for g in graph.groups)


@pytest.mark.parametrize("name", NETS)
def test_random_plans_over_all_groups_are_proved(name):
    graph = trace(*make(name))
    for seed in range(2):
        for check in proved(graph, random_plan(graph, seed))[1]:
            assert check.passed, check
            assert check.max_abs_diff <= 1e-12


def test_a_mean_over_kept_channels_by_hand():
    """Three channels that carry 1, 2 and 6 times the input: their mean is 3, without the last one 1.5."""

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(1, 3, bias=False)
            self.a.weight = nn.Parameter(torch.tensor([[1.0], [2.0], [6.0]]))

        def forward(self, x):
            return self.a(x).mean(-1)

    graph = trace(Mean().eval(), torch.ones(2, 1))
    keep = {graph.groups[0].id: np.array([0, 1])}
    x = torch.tensor([[1.0], [10.0]], dtype=torch.float64)
    assert Masked(graph, keep, torch.float64).outputs((x,))[0].tolist() == [1.5, 15.0]
    assert Streamed(graph.module, torch.float64).outputs((x,))[0].tolist() == [3.0, 30.0]


def test_a_masked_run_at_full_width_is_the_dense_model():
    net, x = make_statistics("layer norm")
    graph = trace(net, x)
    keep = {g.id: np.arange(g.size) for g in graph.groups}
    got = Masked(graph, keep, torch.float64).outputs((x,))[0]
    torch.testing.assert_close(got, copy.deepcopy(net).double()(x.double()), rtol=1e-13, atol=1e-13)


def test_keyword_and_integer_inputs_are_proved_and_small_outputs_judged_by_themselves():
    example = {"ids": torch.arange(14).reshape(2, 7), "mask": torch.ones(2, 7, dtype=torch.int64)}
    net = settled(Words)
    graph = trace(net, example)
    plan = random_plan(graph, 0)
    assert all(check.passed for check in proved(graph, plan)[1])

    def shift(traced: GraphModule) -> None:
        node = next(n for n in traced.graph.nodes if op_name(n) == "mul" and 1e-6 in n.args)
        node.args = (node.args[0], 1.5e-6)

    wrong = rewired(graph, shift)
    first, _ = prove(graph, plan, wrong.cut(graph.removed(plan.keep)))
    assert not first.passed
    assert "aten.mul" in first.detail


# ---------------------------------------------------------------------- wrong removals


def test_a_removal_that_keeps_other_channels_names_the_weight_and_its_reader():
    graph = trace(*make_statistics("layer norm"))
    plan = random_plan(graph, 0)
    other = {i: (graph.group(i).size - 1 - k)[::-1] for i, k in plan.keep.items()}
    _, checks = proved(dataclasses.replace(graph, cut=lambda _: graph.cut(graph.removed(other))), plan)
    for check in checks:
        assert not check.passed
        assert check.detail.startswith("'a.weight' differs first, first read by 'linear' (aten.linear, "), check
        assert "statistics_nets.py:" in check.detail


def test_a_wrong_epsilon_names_the_norm_and_its_line():
    graph = rewired(trace(*make_statistics("layer norm")), on_op("layer_norm", "eps", 0.5))
    _, checks = proved(graph, random_plan(graph, 0))
    assert [c.passed for c in checks] == [False, False]
    assert "'layer_norm' (aten.layer_norm, " in checks[0].detail
    assert "(first)) differs first: max |difference| " in checks[0].detail


def test_a_wrong_normalized_shape_names_the_operator_that_raises():
    graph = rewired(trace(*make_statistics("layer norm")), on_op("layer_norm", "normalized_shape", [16]))
    _, checks = proved(graph, random_plan(graph, 0))
    assert not checks[0].passed
    assert np.isnan(checks[0].max_abs_diff)
    assert "the removed module raises at 'layer_norm' (aten.layer_norm, " in checks[0].detail
    assert "RuntimeError: Expected weight to be of same shape as normalized_shape" in checks[0].detail


def test_a_wrong_number_of_groups_is_caught_although_the_shapes_fit():
    graph = trace(*make_statistics("group norm"))
    norms = [n for n in graph.module.graph.nodes if op_name(n) == "group_norm"]
    assert norms[0].args[1] == 4
    plan = make_plan(
        graph, {g.id: np.arange(g.size) for g in graph.groups}, criterion="none", scope="uniform", step=1
    )
    wrong = rewired(graph, on_op("group_norm", "num_groups", 2))
    _, checks = proved(dataclasses.replace(graph, cut=wrong.cut), plan)
    assert "'group_norm' (aten.group_norm, " in checks[0].detail


@pytest.mark.parametrize("name", ["attention", "einsum"])
def test_whole_heads_and_columns_are_proved_together(name):
    graph = trace(*make(name))
    assert any(g.secondary for g in graph.groups)
    assert all(c.passed for c in proved(graph, random_plan(graph, 3))[1])


def test_a_wrong_attention_scale_names_the_attention():
    graph = rewired(trace(*make("attention")), on_op("scaled_dot_product_attention", "scale", 0.7))
    _, checks = proved(graph, random_plan(graph, 0))
    assert "'scaled_dot_product_attention' (aten.scaled_dot_product_attention, " in checks[0].detail
    assert "differs first" in checks[0].detail


def test_a_failed_proof_is_an_error_with_exit_code_4_that_names_the_operator():
    graph = rewired(trace(*make("attention")), on_op("scaled_dot_product_attention", "scale", 0.7))
    with pytest.raises(VerificationError, match=r"masked = removed \(float64\): max \|difference\|") as caught:
        remove(graph, random_plan(graph, 0))
    assert caught.value.exit_code == 4
    assert "'scaled_dot_product_attention'" in caught.value.message


def test_the_command_line_ends_with_code_4_and_names_the_operator(tmp_path):
    def wrongly(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
        return remove_and_prove(rewired(graph, on_op("batch_norm", "eps", 0.5)), plan)

    with mock.patch("deploypruner.stages.remove.remove_and_prove", wrongly):
        outcome = run_cli(*COMPILE, "--out", str(tmp_path / "build"))
    outcome.assert_error(4, "masked = removed (float64): max |difference|", "'batch_norm' (aten.batch_norm")


def test_noise_inside_a_model_is_no_difference():
    """A variational bottleneck draws fewer numbers once it is narrower, and dropout that is always on other ones."""

    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mean, self.spread, self.o = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(16, 5)

        def forward(self, x):
            mean, spread = self.mean(x), self.spread(x)
            return self.o(nn.functional.dropout(mean + torch.randn_like(spread) * spread, 0.2, training=True))

    graph = trace(Noisy().eval(), torch.randn(2, 12))
    assert graph.groups
    assert all(check.passed for check in proved(graph, random_plan(graph, 0))[1])


def test_a_wrong_shape_of_the_output_is_said():
    class Two(nn.Module):
        def forward(self, x):
            return x[:, :2]

    check = compare_modules("halves", Two(), nn.Identity(), (torch.ones(2, 4),))
    assert not check.passed
    assert check.detail == "output 0 has shape [2, 2] instead of [2, 4]"


# ---------------------------------------------------------------------- cost, and what is left alone


def test_no_copy_of_the_weights_is_made(monkeypatch):
    graph = trace(*make_statistics("layer norm"))
    plan = random_plan(graph, 0)
    module = graph.cut(graph.removed(plan.keep))

    def refuse(*_):
        raise AssertionError("the proof copies a module")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    assert all(check.passed for check in prove(graph, plan, module))


def test_at_most_one_layer_is_converted_at_a_time():
    """Ten layers of 64 x 64: what is alive never holds more than two of them."""
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(10)]).eval()
    graph = trace(net, torch.randn(2, 64))
    one = 64 * 64 * 8
    assert one <= memory.peak_bytes(graph.module, 2, torch.float64) < 2 * one


def test_neither_module_is_changed_even_by_graphs_that_write_in_place():
    for make_net, name in ((make, "in place"), (make_statistics, "global response")):
        graph = trace(*make_net(name))
        plan = random_plan(graph, 0)
        module = graph.cut(graph.removed(plan.keep))
        double = copy.deepcopy(module).double()  # no conversion hides a write
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (graph.module, module, double)]
        code = graph.module.code, module.code
        prove(graph, plan, module)
        compare_modules("itself", module, double, graph.example_inputs)
        for m, state in zip((graph.module, module, double), before, strict=True):
            assert all(torch.equal(state[k], v) for k, v in m.state_dict().items())
        assert code == (graph.module.code, module.code)


def test_a_graph_left_in_training_mode_is_proved_in_evaluation_mode():
    graph = trace(*make("vgg"))
    plan = random_plan(graph, 0)
    module = graph.cut(graph.removed(plan.keep))
    wanted = prove(graph, plan, module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph.module.train()
    assert prove(graph, plan, module.train()) == wanted
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert graph.module.training


def test_where_float64_does_not_fit_float32_is_used_and_said(monkeypatch):
    graph = trace(*make("residual"))
    plan = random_plan(graph, 0)
    monkeypatch.setattr(proof, "fits", lambda *_: False)
    for check in proved(graph, plan)[1]:
        assert check.passed
        assert "(float32" in check.name
        assert 1e-5 < check.tolerance < 1e-2


def test_an_allocation_that_fails_falls_back_to_float32_and_then_fails_the_check(monkeypatch):
    graph = trace(*make("residual"))
    plan = random_plan(graph, 0)
    refused = {torch.float64}
    run = Streamed.outputs

    def outputs(self, inputs):
        if self.dtype in refused:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return run(self, inputs)

    monkeypatch.setattr(Streamed, "outputs", outputs)
    module, checks = proved(graph, plan)
    assert all(c.passed and "(float32" in c.name for c in checks)
    refused.add(torch.float32)
    (check,) = prove(graph, plan, module)
    assert not check.passed
    assert check.detail.startswith("not enough memory to compare: RuntimeError: [enforce fail]")


def test_a_large_activation_does_not_fit(monkeypatch):
    graph = trace(*make("residual"))
    monkeypatch.setattr(memory, "_free", lambda _: 1000)
    assert not memory.fits(graph.module, 3, torch.float64)


# ---------------------------------------------------------------------- inputs


def test_probes_vary_every_sample_and_stay_valid():
    example = (
        torch.ones(2, 5),
        torch.arange(10).reshape(2, 5),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[0.0, -float("inf")]] * 2),
        3,
        None,
    )
    floats, ids, flags, additive, number, nothing = probe(example, 3, seed=0)
    assert floats.shape == (3, 5)
    assert len(floats.unique()) == 15
    assert [sorted(row) for row in ids.tolist()] == [[*range(5)], [*range(5, 10)], [*range(5)]]
    assert ids[0].tolist() != ids[2].tolist()
    assert flags.tolist() == [[True, False], [True, True], [True, False]]
    assert additive.tolist() == [[0.0, -float("inf")]] * 3
    assert (number, nothing) == (3, None)
    assert torch.equal(floats, probe(example, 3, seed=0)[0])
    assert not torch.equal(floats, probe(example, 3, seed=1)[0])


def test_a_model_that_takes_logarithms_gets_inputs_of_the_right_sign():
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.o(self.a(x.log()).cos())

    graph = trace(Log().eval(), torch.rand(2, 4) + 0.1)
    for check in proved(graph, random_plan(graph, 0))[1]:
        assert check.passed
        assert check.detail.startswith("outputs differ by")


def test_an_output_that_ignores_the_input_is_a_weak_proof():
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.o(self.a(1e-9 * x).cos())

    graph = trace(Deaf().eval(), torch.randn(2, 4))
    for check in proved(graph, random_plan(graph, 0))[1]:
        assert check.passed
        assert check.detail.startswith("weak proof: outputs differ by only ")


def test_the_second_batch_is_of_another_size_where_the_batch_is_dynamic():
    graph = trace(*make("residual"))
    names = [c.name for c in proved(graph, random_plan(graph, 0))[1]]
    assert names == ["masked = removed (float64)", "masked = removed (float64, batch of 3)"]
    fixed = dataclasses.replace(graph, dynamic_batch=False)
    names = [c.name for c in proved(fixed, random_plan(graph, 0))[1]]
    assert names == ["masked = removed (float64)", "masked = removed (float64, other inputs)"]


# ---------------------------------------------------------------------- modules without a graph


@pytest.mark.parametrize("name", ["residual", "squeeze-excite", "dense", "attention", "shuffle"])
def test_a_model_without_a_graph_is_proved_by_a_masked_copy(name):
    net, x = make(name)
    graph = trace(net, x)
    plan = random_plan(graph, 0)
    for check in proved(dataclasses.replace(graph, front_end="torch-pruning", module=net), plan)[1]:
        assert check.passed, check


@pytest.mark.parametrize("name", ["layer norm", "group norm"])
def test_a_masked_copy_knows_torchs_own_norms(name):
    net, x = make_statistics(name)
    if name == "layer norm":
        net.last = nn.Identity()  # without a scale nothing tells which of its channels are gone
    graph = trace(net, x)
    plan = random_plan(graph, 0)
    for check in proved(dataclasses.replace(graph, front_end="torch-pruning", module=net), plan)[1]:
        assert check.passed, check
    assert get_state(net, "a.weight").ne(0).all()


def test_a_module_is_compared_in_float64_all_through_although_it_casts():
    net, x = make_statistics("casts")
    check = compare_modules("class = graph", net, trace(net, x).module, (x,))
    assert check.passed
    assert check.max_abs_diff <= 1e-14
    got = Converted(net, torch.float64).outputs((x,))[0]
    assert got.dtype == torch.float64
    assert not net.training
    assert next(net.parameters()).dtype == torch.float32


def test_a_module_that_raises_fails_the_comparison_and_says_which():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no such view\nmore")

    check = compare_modules("class = graph", Broken(), nn.Identity(), (torch.ones(2, 3),))
    assert not check.passed
    assert check.detail.startswith("the first module raises: ValueError: no such view")
