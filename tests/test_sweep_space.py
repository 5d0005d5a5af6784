"""Pruning spaces: what every sampled recipe obeys, and when there are too few."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import deploypruner as dp
from deploypruner.channels.feasible_widths import find_room
from deploypruner.channels.given_widths import given_widths
from deploypruner.errors import InputError
from deploypruner.recipe import Recipe
from deploypruner.recipe.constraints import Constraints
from deploypruner.recipe.reading import overlay
from deploypruner.sweep.recipe_file import recipe_with
from deploypruner.sweep.records import Bucket, DenseModel, Optimum
from deploypruner.sweep.refine import refined
from deploypruner.sweep.space import TOLERANCE, PruningSpace
from tests.nets import NETS, make


def a_graph():
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 40, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(40, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)),
    )
    return dp.trace(net.eval(), torch.zeros(2, 3, 8, 8))


GRAPH = a_graph()


def a_space(macs: float = 0.5, *, step: int = 1, std: tuple[float, float] = (0.0, 0.3), **options) -> PruningSpace:
    order = {group.id: np.arange(group.size)[::-1] for group in GRAPH.groups}

    def cost(keep):
        return float(GRAPH.costs.macs(GRAPH.removed(keep)))

    room, _ = find_room(GRAPH, order, Constraints(), step=step, cost=lambda room: cost(room.narrowest))
    return PruningSpace(GRAPH, room, cost, macs * GRAPH.costs.macs(), std, **options)


@pytest.mark.parametrize(("macs", "step"), [(0.5, 1), (0.3, 2), (0.8, 1)])
def test_every_recipe_costs_what_was_asked_and_has_widths_that_are_allowed(macs, step):
    space = a_space(macs, step=step)
    allowed = space.widths_allowed()
    for recipe in space.sample(20, seed=(0,)):
        module = GRAPH.cut(GRAPH.removed(space.keep(recipe.widths)))
        counted = dp.trace(module.eval(), torch.zeros(2, 3, 8, 8)).costs.macs()  # of the network that is left
        assert (1 - TOLERANCE) * space.target <= counted <= space.target
        assert counted == recipe.cost
        assert recipe.widths.keys() == allowed.keys()
        assert all(width in allowed[group] for group, width in recipe.widths.items())
        assert all(width % step == 0 or width == GRAPH.group(g).size for g, width in recipe.widths.items())


def test_the_standard_deviation_is_that_of_the_ratios():
    space = a_space()
    sizes = {24: 12, 40: 30, 32: 8}  # ratios 0.5, 0.25 and 0.75
    widths = {group.id: sizes[group.size] for group in GRAPH.groups}
    assert space.std_of(widths) == pytest.approx((2 / 3 * 0.25**2) ** 0.5)


def test_recipes_are_spread_over_the_sub_spaces_and_all_different():
    recipes = a_space().sample(25, seed=(0,))
    found = np.histogram([recipe.std for recipe in recipes], (0, 0.05, 0.1, 0.15, 0.2, 0.3))[0]
    assert found.sum() == 25
    assert found.min() >= 2  # with three groups and fixed MACs not every turn finds a recipe that is new
    assert len({tuple(recipe.widths.values()) for recipe in recipes}) == 25


def test_the_first_recipes_are_the_same_however_many_are_asked_for():
    space = a_space()
    ten = space.sample(10, seed=(7,))
    assert space.sample(4, seed=(7,)) == ten[:4]
    assert space.sample(10, seed=(7,), known=4) == ten[4:]
    assert space.sample(10, seed=(8,)) != ten


def test_a_range_of_the_standard_deviation_and_a_condition_hold():
    half = a_space(std=(0.1, 0.15), accepts=lambda keep: len(keep[GRAPH.groups[0].id]) < 20)
    for recipe in half.sample(6, seed=(0,)):
        assert 0.1 <= recipe.std < 0.15
        assert recipe.widths[GRAPH.groups[0].id] < 20


def test_too_few_recipes_are_said_with_a_number_that_works():
    coarse = a_space(step=4)
    with pytest.raises(InputError, match=r"200 recipes were asked for.*only \d+ different ones") as refused:
        coarse.sample(200, seed=(0,))
    count = len(coarse.sample(200, seed=(0,), fewer=True))
    assert 0 < count < 100
    assert f"ask for {count} with --samples" in refused.value.hint
    assert len(coarse.sample(count, seed=(0,))) == count


def test_any_cost_may_be_the_target_such_as_predicted_time():
    space = a_space()

    def milliseconds(keep):
        return sum(3.0 + 0.1 * len(keep[group.id]) for group in GRAPH.groups)

    timed = PruningSpace(GRAPH, space.room, milliseconds, 12.0)
    assert milliseconds({group.id: range(group.size) for group in GRAPH.groups}) == pytest.approx(18.6)
    for recipe in timed.sample(8, seed=(0,)):
        assert 12 * (1 - TOLERANCE) <= milliseconds(timed.keep(recipe.widths)) <= 12


def test_the_refined_space_keeps_to_the_optimum_and_to_the_best_sub_space():
    space, costs = a_space(), GRAPH.costs
    dense = DenseModel(costs.macs(), costs.params(), None)
    optimum = Optimum(at=1.0, interval=(0.98, 1.03), drop=1.0, inside=1.0, observed=(0.8, 1.2))
    buckets = (Bucket(0.0, 0.05, (3.0, 3.1, 3.2, 3.3)), Bucket(0.1, 0.15, (1.0, 1.1, 1.2, 1.3)))
    narrow, wider, whole = refined(space, dense=dense, optimum=optimum, buckets=buckets)
    assert (narrow.space.std, wider.space.std, whole.space) == ((0.1, 0.15), (0.0, 0.3), space)
    assert "0.950 to 1.050 times" in narrow.text
    assert "from 0.1 to 0.15" in narrow.text
    for recipe in narrow.space.sample(3, seed=(0,)):
        removed = GRAPH.removed(space.keep(recipe.widths))
        assert 0.95 <= costs.macs(removed) / costs.params(removed) / dense.macs_per_param <= 1.05
    assert refined(space, dense=dense, optimum=None, buckets=buckets[:1])[0].space == space


@pytest.mark.parametrize("name", NETS)
def test_a_recipe_file_says_every_recipe_of_a_space(name):
    """Also where the output of one layer is of several groups, as that of a layer with a padded shortcut."""
    graph = dp.trace(*make(name))
    order = {group.id: np.arange(group.size)[::-1] for group in graph.groups}

    def cost(keep):
        return float(graph.costs.macs(graph.removed(keep)))

    room, _ = find_room(graph, order, Constraints(), step=1, cost=lambda room: cost(room.narrowest))
    allowed = PruningSpace(graph, room, cost, graph.costs.macs()).widths_allowed()
    generator = np.random.default_rng(0)
    for _ in range(4):
        widths = {group: int(generator.choice(choices)) for group, choices in allowed.items()}
        recipe = recipe_with(overlay(Recipe(), {"prune": {"step": 1}}), graph, widths)
        said = given_widths(graph, recipe.prune.constraints, step=1).widths
        assert said == {name: width for name, width in widths.items() if width < graph.group(name).size}
