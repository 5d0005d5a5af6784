"""What a user wants left alone stays, what may be cut is cut as far as allowed, and the counts stay exact."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import deploypruner as dp
from deploypruner.channels.allocate import allocate, reachable
from deploypruner.channels.constraints import find_limits
from deploypruner.channels.criteria.magnitude import Magnitude
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import BudgetError, InputError, PlanError, RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints, LayerConstraint
from tests.nets import NETS, make


class Normalised(nn.Module):
    """A residual stream under layer norms, attention of 4 heads with 8 columns, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(12, 32), nn.LayerNorm(32)
        self.q, self.k, self.v, self.o = (nn.Linear(32, 32) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (4, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.o(y)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


class Halves(nn.Module):
    """Two halves of one layer go different ways without a weight on either: one group, two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.c(self.b(torch.cat([left.relu(), nn.functional.max_pool2d(right, 3, 1, 1)], 1)))


@cache
def graph_of(name: str) -> Graph:
    """Traced once: graphs are never changed."""
    if name == "normalised":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return trace(Normalised().eval(), torch.randn(2, 7, 12))
    if name == "halves":
        return trace(Halves().eval(), torch.randn(2, 3, 8, 8))
    if name == "grouped":
        convs = nn.Conv2d(3, 24, 1), nn.Conv2d(24, 48, 3, groups=4), nn.ReLU(), nn.Conv2d(48, 5, 1)
        return trace(nn.Sequential(*convs).eval(), torch.randn(2, 3, 8, 8))
    return trace(*make(name))


def plan_of(name: str, macs: float, step: int = 1, **options) -> Plan:
    graph = graph_of(name)
    scores = score_groups(graph, Magnitude(), None)
    return allocate(graph, scores, Budget(macs), criterion="magnitude", step=step, **options)


def widths(plan: Plan) -> dict[str, int]:
    return {g.id: len(g.keep) for g in plan.groups}


def whole(plan: Plan) -> set[str]:
    return {g.id for g in plan.groups if len(g.keep) == g.size}


def kinds(name: str) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for group in graph_of(name).groups:
        found.setdefault(group.kind, set()).add(group.size)
    return found


# ---------------------------------------------------------------------- kinds


def test_heads_and_their_columns_are_told_apart_by_how_they_lie():
    assert kinds("normalised") == {"channels": {32, 64}, "heads": {4}, "head columns": {8}}


def test_groups_of_a_convolution_and_their_columns_are_told_from_heads():
    assert kinds("grouped") == {"conv groups": {4}, "group columns": {6, 12}}
    assert kinds("squeeze-excite").keys() == {"channels"}  # one column per group: a depthwise convolution


def test_groups_of_a_group_norm_are_called_so():
    net = nn.Sequential(nn.Conv2d(3, 24, 1), nn.GroupNorm(4, 24), nn.Conv2d(24, 5, 1))
    assert {g.kind for g in trace(net, torch.randn(2, 3, 4, 4)).groups} == {"norm groups", "group columns"}


@pytest.mark.parametrize("name", ["normalised", "grouped", "attention", "deconv", "shuffle", "einsum"])
def test_partners_share_entries_and_name_each_other(name):
    graph = graph_of(name)
    entries = {
        g.id: {(m.parameter, m.axis, i) for m in g.members for i in m.index.reshape(-1).tolist()}
        for g in graph.groups
    }
    for a in graph.groups:
        met = {b for b, theirs in entries.items() if b != a.id and theirs & entries[a.id]}
        assert set(a.partners) == met


# ---------------------------------------------------------------------- costs


@pytest.mark.parametrize("name", ["normalised", "grouped", "residual", "dense", "branches", "attention", "deconv"])
def test_a_tally_counts_what_counting_everything_gives(name):
    graph, rng = graph_of(name), np.random.default_rng(0)
    keep = {g.id: np.arange(g.size) for g in graph.groups}
    tally = graph.tally()
    for _ in range(30):
        group = graph.groups[rng.integers(len(graph.groups))]
        keep[group.id] = np.sort(rng.choice(group.size, rng.integers(1, group.size + 1), replace=False))
        assert tally.keep(group.id, keep[group.id]) == graph.costs.macs(graph.removed(keep))


@pytest.mark.parametrize("name", ["normalised", "grouped", "residual", "attention", "branches", "einsum"])
def test_macs_of_a_plan_are_those_of_a_fresh_trace_of_what_is_left(name):
    graph, rng = graph_of(name), np.random.default_rng(1)
    keep = {g.id: np.sort(rng.choice(g.size, -(-g.size * 2 // 3), replace=False)) for g in graph.groups}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], sorted(channels))
    plan = make_plan(graph, keep)
    again = trace(graph.cut(graph.removed(keep)), graph.example_inputs)
    assert again.costs.macs() == plan.macs_after
    assert again.costs.params() == plan.params_after


def test_macs_per_channel_of_every_group_are_what_removing_one_saves():
    graph = graph_of("dense")
    for group in graph.groups:
        left = graph.costs.macs(graph.removed({group.id: np.arange(1, group.size)}))
        assert group.macs_per_channel == graph.costs.macs() - left


class Products(nn.Module):
    """Layers written as products with a parameter, in every form, beside an attention that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(20, 12)), nn.Parameter(torch.randn(20, 8))
        self.c, self.d = nn.Parameter(torch.randn(4, 2, 6)), nn.Linear(24, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (x @ self.a.t()).relu() @ self.b
        y = torch.einsum("bnhi,hij->bnhj", y.unflatten(-1, (4, 2)), self.c)
        attention = (y @ y.transpose(-1, -2)).softmax(-1)
        return self.d((attention @ y).flatten(2))


def test_a_product_with_a_parameter_is_a_layer_however_it_is_written():
    graph = trace(Products().eval(), torch.randn(2, 7, 12))
    assert graph.costs.layer_macs() == {"a": 7 * 12 * 20, "b": 7 * 20 * 8, "c": 7 * 4 * 2 * 6, "d.weight": 7 * 24 * 5}


@pytest.mark.parametrize("name", sorted(set(NETS) - {"unsupported"}))
def test_macs_are_half_the_flops_of_torchs_counter_but_for_products_of_two_activations(name):
    """Unlike torch we do not count q k^T and the like; `einsum` has two, of 4 heads x 7 x 7 tokens x 12 columns."""
    net, x = make(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(x)
    attention = 2 * 4 * 7 * 7 * 12 if name == "einsum" else 0
    assert counter.get_total_flops() == 2 * len(x) * (graph_of(name).costs.macs() + attention)


# ---------------------------------------------------------------------- limits


def test_an_excluded_module_keeps_its_inputs_and_outputs():
    plan = plan_of("residual", 0.8, constraints=Constraints(exclude=("head",)))
    assert whole(plan) == {"b.0.weight:0"}  # what the head reads
    cut = {parameter for g in plan.groups if len(g.keep) < g.size for parameter, _, _ in g.members}
    assert not any(parameter.startswith("head") for parameter in cut)


@pytest.mark.parametrize("pattern", ["a", "a.*", "a.0", "*.0", "a.0.weight", "[a]"])
def test_a_pattern_may_name_a_module_its_parents_or_a_parameter(pattern):
    limits = find_limits(
        graph_of("dense" if pattern == "*.0" else "residual"),
        Constraints(exclude=(pattern,)),
        step=1,
        statistics=True,
    )
    assert any(limit.whole == f"excluded by '{pattern}'" for limit in limits.values())


def test_a_pattern_that_matches_nothing_offers_the_nearest_module():
    with pytest.raises(RecipeError, match=r"no module of this model matches 'sten\.\*'[\s\S]*did you mean 'stem'\?"):
        plan_of("residual", 0.8, constraints=Constraints(exclude=("sten.*",)))


def test_a_minimum_width_counts_output_channels():
    plan = plan_of("residual", 0.7, constraints=Constraints(min_width=12))
    assert min(widths(plan).values()) >= 12
    columns = plan_of("grouped", 0.6, constraints=Constraints(min_width=20))
    outputs = [len(g.keep) * k for g in columns.groups for p, axis, k in g.members if axis == 0 and p == "1.weight"]
    assert min(outputs) >= 20


def test_no_layer_loses_more_than_its_share():
    plan = plan_of("residual", 0.8, constraints=Constraints(max_cut=0.25))
    assert all(len(g.keep) >= 0.75 * g.size for g in plan.groups)
    with pytest.raises(BudgetError, match=r"at least 75 % of its channels\) still costs"):
        plan_of("residual", 0.3, constraints=Constraints(max_cut=0.25))


def test_tables_override_the_general_limits_and_the_strictest_of_them_counts():
    tables = (
        LayerConstraint("b", step=4, min_width=8),
        LayerConstraint("head", step=6, min_width=4),
        LayerConstraint("stem", max_cut=0.5),
    )
    limits = find_limits(graph_of("residual"), Constraints(layers=tables), step=16, statistics=True)
    assert limits["b.0.weight:0"].unit == 12  # both 4 and 6
    assert limits["b.0.weight:0"].least == 8
    assert limits["stem.0.weight:0"].least == 8


@pytest.mark.parametrize(("heads", "cut"), [("columns", {"head columns"}), ("heads", {"heads"})])
def test_heads_or_columns_are_cut_as_asked(heads, cut):
    plan = plan_of(
        "normalised", 0.7, constraints=Constraints(heads=heads, exclude=("up",), statistics="keep", max_cut=1)
    )
    kind = {g.id: g.kind for g in graph_of("normalised").groups}
    assert {kind[g] for g in widths(plan).keys() - whole(plan)} <= cut


def test_heads_and_columns_cut_together_keep_the_share_of_the_layer_and_the_step():
    plan = plan_of("normalised", 0.4, 4, constraints=Constraints(heads="both", max_cut=0.75, statistics="prune"))
    size = widths(plan)
    columns = [g for g in graph_of("normalised").groups if g.kind == "head columns"]
    for group in columns:
        for partner in group.partners:
            outputs = size[group.id] * size[partner]
            assert outputs >= 0.25 * 32
            assert outputs % 4 == 0


def test_channels_a_normalisation_averages_over_are_cut_only_if_the_budget_needs_it():
    graph = graph_of("normalised")
    [stream] = [g.id for g in graph.groups if g.changes_statistics]
    least = reachable(graph, 1, Constraints(statistics="keep")) / graph.costs.macs()
    assert reachable(graph, 1) < least * graph.costs.macs()
    assert stream in whole(plan_of("normalised", least))
    below = plan_of("normalised", least - 0.01)
    assert stream not in whole(below)
    assert below.macs_after <= (least - 0.01) * below.macs_before
    with pytest.raises(BudgetError, match=r"[\s\S]*--statistics auto"):
        plan_of("normalised", least - 0.01, constraints=Constraints(statistics="keep"))


def test_a_model_that_may_not_be_cut_says_which_constraint_stands_in_the_way():
    with pytest.raises(InputError, match=r"none of the \d+ groups of this model may be cut; .*excluded by '\*'"):
        plan_of("residual", 0.5, constraints=Constraints(exclude=("*",)))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"min_width": 0}, "--min-width must be at least 1 channel, got 0"),
        ({"max_cut": 1.5}, "--max-cut is the largest share of a layer's channels that may go, 0 to 1, got 1.5"),
        ({"max_cut": float("nan")}, "--max-cut is the largest share"),
        ({"heads": "colums"}, r"--heads cannot be 'colums'[\s\S]*did you mean 'columns'"),
        ({"statistics": "cut"}, "--statistics cannot be 'cut'"),
    ],
)
def test_a_constraint_out_of_range_is_named(fields, said):
    with pytest.raises(RecipeError, match=said):
        Constraints(**fields)
    if not fields.keys() & {"statistics"}:
        with pytest.raises(RecipeError, match=said):
            LayerConstraint("x", **fields)


def test_a_table_needs_a_match_and_a_step_of_one_or_more():
    with pytest.raises(RecipeError, match="match is empty"):
        LayerConstraint("")
    with pytest.raises(RecipeError, match="--step must be at least 1 channel, got 0"):
        LayerConstraint("a", step=0)


# ---------------------------------------------------------------------- plans by hand


def test_widths_by_hand_are_kept_and_the_budget_decides_about_the_rest():
    graph = graph_of("residual")
    by_hand = dp.plan(graph, widths={"b.0.weight:0": 5})
    assert widths(by_hand) == {"stem.0.weight:0": 16, "b.0.weight:0": 5}
    both = dp.plan(graph, widths={"b.0.weight:0": 5}, budget=Budget(0.4), step=1)
    assert widths(both)["b.0.weight:0"] == 5
    assert both.macs_after <= 0.4 * both.macs_before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"b.0.wight:0": 4}, r"no group 'b.0.wight:0'[\s\S]*did you mean 'b.0.weight:0'"),
        ({"b.0.weight:0": 0}, r"'b.0.weight:0' has \d+ channels, 0 of them cannot stay"),
        ({"b.0.weight:0": 400}, "400 of them cannot stay"),
    ],
)
def test_a_width_that_cannot_be_is_named(asked, said):
    with pytest.raises(PlanError, match=said):
        dp.plan(graph_of("residual"), widths=asked)


def test_a_plan_needs_a_budget_or_widths():
    with pytest.raises(RecipeError, match="plan needs a budget"):
        dp.plan(graph_of("residual"))


@pytest.mark.parametrize(
    ("kept", "said"),
    [
        ([], r"keeps none of the 16 channels of 'stem.0.weight:0'"),
        ([0, 16], "does not keep 2 different channels of 'stem.0.weight:0', which has 0 to 15"),
        ([3, 3], "does not keep 2 different channels"),
    ],
)
def test_channels_that_cannot_be_kept_are_named(kept, said):
    with pytest.raises(PlanError, match=said):
        make_plan(graph_of("residual"), {"stem.0.weight:0": kept})


def test_a_plan_by_hand_that_empties_a_tensor_names_the_channel_that_has_to_stay():
    with pytest.raises(PlanError, match=r"without any index: channel 4 of 'a.weight:0' has to stay"):
        make_plan(graph_of("halves"), {"a.weight:0": [0, 1, 2]})


def test_a_budget_is_met_although_channels_that_keep_a_tensor_alive_come_first():
    """The left half is less important throughout; of two channels that stay, one is the best of it all the same."""
    graph, order = graph_of("halves"), torch.arange(8.0)
    scores = {"a.weight:0": order, "b.weight:0": torch.ones(8)}
    constraints = Constraints(max_cut=1)
    least = reachable(graph, 1, constraints) / graph.costs.macs()
    assert least == (2 * 3 + 2 + 5) / (8 * 3 + 8 * 8 + 8 * 5)
    plan = allocate(graph, scores, Budget(least), criterion="none", step=1, constraints=constraints)
    assert plan.macs_after == least * plan.macs_before
    assert plan.keep["a.weight:0"].tolist() == [3, 7]


def test_a_width_by_hand_that_empties_a_tensor_says_how_many_have_to_stay():
    with pytest.raises(
        PlanError, match=r"with 1 channels of 'a.weight:0' some tensor has none left\n\nhint: keep at least 2"
    ):
        dp.plan(graph_of("halves"), widths={"a.weight:0": 1})
