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

from deploypruner.channels.allocate import make_plan
from deploypruner.channels.plan import Plan
from deploypruner.channels.proof.masked_reference import Masked
from deploypruner.channels.proof.removal import compare_modules, prove
from deploypruner.channels.remove import remove, remove_and_prove
from deploypruner.errors import VerificationError
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.float64_interpreter import Streamed
from deploypruner.graph.nodes import op_name, set_argument
from deploypruner.records import Check
from tests.builds import COMPILE, run_cli
from tests.nets import NETS, make
from tests.proving import proved, random_plan
from tests.statistics_nets import STATISTICS_NETS, Words, make_statistics, settled


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
    # Lengths of a weight norm are scaled and rounded to float32, by 6e-8 at most.
    exact = 1e-7 if graph.labelling.normed else 1e-12
    for seed in range(2):
        for check in proved(graph, random_plan(graph, seed))[1]:
            assert check.passed, check
            assert check.max_abs_diff <= exact


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


def test_the_scaled_lengths_of_a_weight_norm_are_not_blamed_for_what_is_wrong_after_it():
    graph = rewired(trace(*make("tied")), lambda module: module.get_parameter("o.weight").data.neg_())
    assert graph.labelling.normed
    _, checks = proved(graph, random_plan(graph, 0))
    assert [c.passed for c in checks] == [False, False]
    assert checks[0].detail.startswith("'o.weight' differs first, first read by 'linear"), checks[0]


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


@pytest.mark.slow
def test_the_command_line_ends_with_code_4_and_names_the_operator(tmp_path):
    def wrongly(graph: Graph, plan: Plan) -> tuple[nn.Module, tuple[Check, ...]]:
        return remove_and_prove(rewired(graph, on_op("batch_norm", "eps", 0.5)), plan)

    with mock.patch("deploypruner.build.stages.remove.remove_and_prove", wrongly):
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
