"""Normalizers, scopes and given shares: axes that combine with every criterion, or refuse to."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from deploypruner.build.choices import check_choices
from deploypruner.build.state import Given
from deploypruner.channels.allocate import allocate, reachable
from deploypruner.channels.given_widths import given_widths
from deploypruner.channels.normalize import comparable
from deploypruner.channels.scope import layout
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.recipe import ModelRecipe, PruneRecipe, Recipe
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints, LayerConstraint
from deploypruner.registries import normalizers, scopes
from deploypruner.search.losses import running_importance
from tests.nets import conv_bn


class Stages(nn.Module):
    """Two stages of two blocks each: the inner channels of each stage's blocks are alike."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = conv_bn(3, 16), nn.ModuleList()
        for i, o in ((16, 16), (16, 16), (16, 32), (32, 32)):
            self.blocks.append(nn.Sequential(conv_bn(i, o), conv_bn(o, o)))
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            y = block(x)
            x = x + y if y.shape == x.shape else y
        return self.head(x.mean((2, 3)))


INNER = [f"blocks.{i}.0.0.weight:0" for i in range(4)]


@functools.cache
def stages() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Stages().eval(), torch.randn(2, 3, 8, 8))


def scores_of(graph: Graph, scale: dict[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Uniform numbers, a group's all multiplied by its scale."""
    generator = torch.Generator().manual_seed(0)
    drawn = {g.id: torch.rand(g.size, generator=generator) for g in graph.groups}
    return {name: score * (scale or {}).get(name, 1.0) for name, score in drawn.items()}


def widths(plan) -> dict[str, int]:
    return {g.id: len(g.keep) for g in plan.groups}


def cut(match: str, share: float) -> LayerConstraint:
    return LayerConstraint(match, cut=share)


# ---------------------------------------------------------------------- normalizers


@pytest.mark.parametrize("name", normalizers)
def test_a_normalizer_never_changes_the_order_within_a_group(name):
    group, score = stages().groups[0], torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0, 2.0]).double()
    assert comparable(score, group, name).argsort().tolist() == score.argsort().tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("none", [1.0, 2.0, 5.0]),
        ("mean", [3 / 8, 6 / 8, 15 / 8]),
        ("max", [0.2, 0.4, 1.0]),
        ("sum", [1 / 8, 2 / 8, 5 / 8]),
        ("lamp", [1 / 8, 2 / 7, 5 / 5]),
    ],
)
def test_normalizers_by_hand(name, expected):
    score = comparable(torch.tensor([1.0, 2.0, 5.0]), stages().groups[0], name)
    torch.testing.assert_close(score, torch.tensor(expected))


def test_standard_scores_have_mean_0_and_deviation_1():
    score = comparable(torch.tensor([1.0, 2.0, 5.0, 8.0]), stages().groups[0], "standard")
    assert score.mean().abs() < 1e-6
    assert abs(score.std(correction=0) - 1) < 1e-6


def test_per_mac_divides_by_what_a_channel_costs():
    group = stages().groups[0]
    assert comparable(torch.tensor([1.0]), group, "per_mac").item() == pytest.approx(1 / group.macs_per_channel)


@pytest.mark.parametrize("name", sorted(normalizers))
def test_scores_that_are_all_alike_stay_finite(name):
    for value in (0.0, 2.0):
        assert torch.isfinite(comparable(torch.full((4,), value), stages().groups[0], name)).all()


def test_normalizing_by_the_mean_undoes_the_scale_of_a_group():
    graph, options = stages(), {"criterion": "random", "step": 1}
    plain, scaled = scores_of(graph), scores_of(graph, {INNER[0]: 1000.0})
    for name, same in (("mean", True), ("max", True), ("sum", True), ("standard", True), ("none", False)):
        plans = [allocate(graph, s, Budget(0.6), normalizer=name, **options) for s in (plain, scaled)]
        assert (widths(plans[0]) == widths(plans[1])) == same, name


@pytest.mark.parametrize("name", sorted(n for n in normalizers if normalizers.get(n).adds_up))
def test_importance_for_a_budget_of_time_grows_with_every_channel(name):
    graph = stages()
    scores = scores_of(graph)
    order = {g: s.argsort(descending=True).numpy() for g, s in scores.items()}
    running = running_importance(graph, scores, order, normalizer=name)
    assert all((torch.tensor(line).diff() >= 0).all() for line in running.values())


# ---------------------------------------------------------------------- scopes


def test_alike_groups_are_those_of_one_stage():
    graph = stages()
    found = [layout(graph, graph.group(name)) for name in INNER]
    assert found[0] == found[1] != found[2] == found[3]


def test_isomorphic_classes_lose_the_same_share_and_compete_within():
    """The inner channels of stage 1 matter a thousand times less; globally they would pay for everything."""
    graph = stages()
    scores = scores_of(graph, {INNER[0]: 1e-3, INNER[1]: 1e-6, INNER[2]: 1e3})
    plan = allocate(graph, scores, Budget(0.5), criterion="random", scope="isomorphic", normalizer="none", step=1)
    kept = widths(plan)
    first, second = (kept[INNER[0]] + kept[INNER[1]]) / 32, (kept[INNER[2]] + kept[INNER[3]]) / 64
    assert abs(first - second) < 0.05
    assert kept[INNER[1]] < kept[INNER[0]]
    assert kept[INNER[3]] < kept[INNER[2]]


def test_isomorphic_is_uniform_where_no_two_groups_are_alike():
    net = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 5)).eval()
    graph = trace(net, torch.randn(2, 12))
    plans = [
        allocate(graph, scores_of(graph), Budget(0.5), criterion="random", scope=scope, step=1)
        for scope in ("uniform", "isomorphic")
    ]
    assert widths(plans[0]) == widths(plans[1])


# ---------------------------------------------------------------------- shares that are given


def test_scope_recipe_removes_the_shares_it_is_given_and_nothing_else():
    graph = stages()
    tables = (cut("blocks.0.0", 0.5), cut("blocks.2.0.0.weight", 0.25))
    constraints = Constraints(layers=tables)
    plan = allocate(
        graph, scores_of(graph), Budget(1.0), criterion="random", scope="recipe", step=1, constraints=constraints
    )
    assert widths(plan) == {**{g.id: g.size for g in graph.groups}, INNER[0]: 8, INNER[2]: 24}
    assert plan.macs_after < plan.macs_before


def test_a_given_share_is_kept_by_every_other_scope():
    graph, constraints = stages(), Constraints(layers=(cut("blocks.3.0.0", 0.5),))
    for scope in ("global", "uniform", "isomorphic"):
        plan = allocate(
            graph, scores_of(graph), Budget(0.7), criterion="random", scope=scope, step=1, constraints=constraints
        )
        assert widths(plan)[INNER[3]] == 16
        assert plan.macs_after <= 0.7 * plan.macs_before
    assert reachable(graph, 1, constraints) > reachable(graph, 1)


def test_the_smallest_of_several_shares_counts():
    given = given_widths(stages(), Constraints(layers=(cut("blocks.3.0", 0.5), cut(INNER[3][:-2], 0.25))), step=1)
    assert given.widths[INNER[3]] == 24


@pytest.mark.parametrize(("share", "step", "width"), [(0.5, 8, 16), (0.3, 8, 24), (0.99, 8, 8), (0.99, 1, 1)])
def test_a_share_is_rounded_to_the_step_and_never_empties_a_group(share, step, width):
    given = given_widths(stages(), Constraints(layers=(cut(INNER[3][:-2], share),)), step=step)
    assert given.widths == {**given.widths, INNER[3]: width}
    assert bool(given.remarks) == (share == 0.99)


def test_a_share_that_would_empty_a_group_is_said():
    (remark,) = given_widths(stages(), Constraints(layers=(cut(INNER[3][:-2], 0.99),)), step=8).remarks
    expected = (
        f"a cut of 0.99 would leave 0 of 32 channels of '{INNER[3]}'; it keeps 8, the least that --step 8 allows"
    )
    assert remark == expected


def test_a_share_of_what_is_excluded_is_said():
    constraints = Constraints(exclude=("blocks.3",), layers=(cut(INNER[3][:-2], 0.5),))
    given = given_widths(stages(), constraints, step=8)
    assert given.widths == {}
    assert given.remarks == (f"'{INNER[3]}' stays whole in spite of its cut of 0.5: excluded by 'blocks.3'",)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(share):
    with pytest.raises(RecipeError, match="the cut of 'a' is the share of its channels that goes, 0 <= cut < 1, got"):
        cut("a", share)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "isomorfic"}, r"no scope called 'isomorfic'[\s\S]*did you mean 'isomorphic'"),
        ({"normalizer": "men"}, r"no normalizer called 'men'[\s\S]*did you mean 'mean'"),
        ({"scope": "recipe"}, "scope 'recipe' has nothing to cut"),
        ({"scope": "recipe", "macs": 0.5}, "scope 'recipe' takes every width from"),
        ({"scope": "uniform", "latency": "5ms"}, "--latency chooses every width by the time it saves"),
        ({"scope": "isomorphic", "speedup": 2.0}, "--speedup chooses every width by the time it saves"),
        ({"normalizer": "standard", "speedup": 2.0}, "normalizer 'standard' gives scores below zero"),
        ({"latency": 5.0, "layers": (cut("a", 0.5),)}, "fixes a width, and --latency has to choose all of them"),
        ({"criterion": "oracle"}, "criterion 'oracle' looks at the loss and needs data"),
        ({"criterion": "activation"}, "criterion 'activation' looks at activations and needs data"),
    ],
)
def test_combinations_that_make_no_sense_are_refused_before_any_work(options, said):
    with pytest.raises(RecipeError, match=said):
        check_choices(Recipe(model=ModelRecipe(source="net.pt2"), prune=PruneRecipe(**options)), Given())


@pytest.mark.parametrize("scope", sorted(set(scopes) - {"recipe"}))
@pytest.mark.parametrize("normalizer", sorted(normalizers))
def test_everything_else_combines(scope, normalizer):
    recipe = Recipe(model=ModelRecipe(source="net.pt2"), prune=PruneRecipe(scope=scope, normalizer=normalizer))
    assert check_choices(recipe, Given()) is None


def test_a_recipe_of_shares_has_no_default_budget():
    assert PruneRecipe(scope="recipe", layers=(cut("a", 0.5),)).macs == 1.0
    assert PruneRecipe().macs == 0.5
