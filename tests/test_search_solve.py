"""The solver against enumeration, its promises on whole graphs, and what it says when it has to refuse."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.channels.constraints import find_limits
from deploypruner.channels.plan import make_plan
from deploypruner.errors import BudgetError, InputError
from deploypruner.graph import trace
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.constraints import Constraints
from deploypruner.records import Setting
from deploypruner.search.bottlenecks import obstacles
from deploypruner.search.choices import WidthWalk
from deploypruner.search.preview import look_ahead
from deploypruner.search.solve import reach, solve
from deploypruner.search.solver import best_places, fastest
from tests.nets import NETS, make
from tests.small_cases import KINDS, draw
from tests.staircase import Layer, Staircase


def gaps(kind: str, cases: int) -> np.ndarray:
    """Share of the best worth that the solver misses, over random cases and budgets."""
    rng, found = np.random.default_rng(KINDS.index(kind)), []
    for _ in range(cases):
        case = draw(rng, kind)
        ms, worth = case.everything()
        for share in (0.1, 0.3, 0.6):
            budget = ms.min() + share * (ms.max() - ms.min())
            places = best_places(WidthWalk(case.choices, case.tally(), case.order), budget)
            assert ms[places] <= budget * (1 + 1e-12)
            found.append(1 - worth[places] / worth[ms <= budget * (1 + 1e-12)].max())
    return np.array(found)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_nearly_all_small_cases_are_solved_exactly_and_none_is_off_by_more_than_two_percent(kind):
    found = gaps(kind, cases=8)
    assert np.mean(found < 1e-9) >= 0.95
    assert np.median(found) == pytest.approx(0, abs=1e-9)
    assert found.max() <= 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_fastest_plan_is_the_fastest_there_is(kind):
    rng = np.random.default_rng(7)
    for _ in range(10):
        case = draw(rng, kind)
        ms, _ = case.everything()
        walk = WidthWalk(case.choices, case.tally(), case.order)
        assert ms[fastest(walk)] == pytest.approx(ms.min())


def test_a_budget_of_exactly_the_fastest_plan_can_be_met_and_less_cannot():
    case = draw(np.random.default_rng(3), "chain")
    ms, _ = case.everything()
    walk = WidthWalk(case.choices, case.tally(), case.order)
    assert best_places(walk, float(ms.min()) * (1 + 1e-9)) is not None
    assert best_places(walk, float(ms.min()) * 0.999) is None


# ---------------------------------------------------------------------- whole graphs


def scored(name: str, seed: int = 0):
    net, x = make(name)
    graph = trace(net, x)
    generator = torch.Generator().manual_seed(seed)
    return graph, {g.id: torch.empty(g.size).log_normal_(0, 1, generator=generator) for g in graph.groups}


def within(graph, model: Staircase, share: float, step: int = 4) -> float:
    """A budget this far between the fastest plan and the whole model."""
    least = reach(graph, model.tally, step=step)
    assert least.fastest_ms < least.dense_ms, "nothing to choose"
    return least.fastest_ms + share * (least.dense_ms - least.fastest_ms)


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("unsupported", "in place")])
def test_a_plan_is_within_its_budget_and_no_group_can_be_widened(name):
    graph, scores = scored(name)
    model = Staircase(graph, block=4, base=0.001)
    free = Constraints(statistics="prune", pieces="free")
    least = reach(graph, model.tally, step=2, constraints=free)
    budget = 0.5 * (least.dense_ms + least.fastest_ms)
    found = solve(graph, scores, model.tally, budget, step=2, constraints=free)
    assert found.predicted_ms == pytest.approx(model.ms(found.keep))
    assert found.predicted_ms <= budget
    assert 0 < found.importance < 1
    make_plan(graph, found.keep)  # no tensor is left without an index
    limits = find_limits(graph, free, step=2, statistics=True)
    tally = model.tally({g.id: np.arange(g.size) for g in graph.groups})
    for group_id, channels in found.keep.items():
        tally.keep(group_id, channels)
    inside = {group for branch in found.dropped for group in graph.branch(branch).groups}
    for group in (g for g in graph.groups if g.id not in inside):
        wider = [w for w in (group.size, *limits[group.id].narrower(group.size)) if w > found.widths[group.id]]
        rest = np.setdiff1d(np.arange(group.size), found.keep[group.id])
        best_first = rest[np.argsort(-scores[group.id].numpy()[rest], kind="stable")]
        for width in wider:
            added = best_first[: width - found.widths[group.id]]
            assert tally.keep(group.id, np.union1d(found.keep[group.id], added)) > budget, (group.id, width)
            tally.keep(group.id, found.keep[group.id])


class Halves(nn.Module):
    """Code that cuts a tensor into two equal halves, each with a layer of its own behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 24, 1)
        self.p, self.q, self.b = (nn.Conv2d(*c, 1) for c in ((12, 8), (12, 20), (28, 4)))

    def forward(self, x: Tensor) -> Tensor:
        p, q = self.a(self.stem(x).relu()).chunk(2, 1)
        return self.b(torch.cat([self.p(p).relu(), self.q(q).relu()], 1))


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_equal_pieces_stay_equal_and_their_plan_is_the_best_of_all_that_are(share):
    graph = trace(Halves().eval(), torch.randn(2, 3, 8, 8))
    halves = [g.id for g in graph.groups if g.id.startswith("a.weight:0")]
    generator = torch.Generator().manual_seed(1)
    scores = {g.id: torch.empty(g.size).log_normal_(0, 1, generator=generator) for g in graph.groups}
    scores[halves[1]] *= 0.01  # alone, all of the second half would go first
    model = Staircase(graph, block=2)
    least = reach(graph, model.tally, step=4)
    budget = least.fastest_ms + share * (least.dense_ms - least.fastest_ms)
    found = solve(graph, scores, model.tally, budget, step=4)
    assert len(halves) == 2
    assert found.widths[halves[0]] == found.widths[halves[1]]
    order = {g: torch.argsort(s, descending=True).numpy() for g, s in scores.items()}
    others = [g.id for g in graph.groups if g.id not in halves and g.size > 6]  # the stem stays whole
    best = 0.0
    wide = (
        range(-(-graph.group(g).size // 16) * 4, graph.group(g).size + 1, 4) for g in others
    )  # a quarter at least
    for width, *rest in product((4, 8, 12), *wide):
        widths = {g.id: g.size for g in graph.groups} | dict.fromkeys(halves, width)
        widths |= dict(zip(others, rest, strict=True))
        keep = {g: np.sort(order[g][:w]) for g, w in widths.items()}
        if model.ms(keep) <= budget * (1 + 1e-12):
            best = max(best, sum(float(scores[g][k].sum()) for g, k in keep.items()))
    kept = sum(float(scores[g][found.keep[g]].sum()) for g in order)
    assert 0.98 * best <= kept <= best * (1 + 1e-9)
    uneven = solve(graph, scores, model.tally, budget, step=4, constraints=Constraints(pieces="free"))
    assert uneven.importance >= found.importance
    assert type(make_plan(graph, found.keep).apply_to(Halves().eval())) is Halves


def test_more_time_never_keeps_less_on_a_residual_network():
    graph, scores = scored("residual")
    model = Staircase(graph, block=4)
    least = reach(graph, model.tally, step=4)
    kept = [
        solve(graph, scores, model.tally, ms, step=4).importance
        for ms in np.linspace(least.fastest_ms * 1.001, least.dense_ms, 6)
    ]
    assert kept == sorted(kept)
    assert kept[-1] == 1


def test_the_same_question_has_the_same_answer():
    graph, scores = scored("branches")
    model = Staircase(graph, block=4)
    budget = within(graph, model, 0.5, step=2)
    first, second = (solve(graph, scores, model.tally, budget, step=2) for _ in range(2))
    assert first.widths == second.widths
    assert {g: k.tolist() for g, k in first.keep.items()} == {g: k.tolist() for g, k in second.keep.items()}


def test_a_width_that_costs_no_more_is_always_taken():
    rng = np.random.default_rng(5)
    for case in (draw(rng, "chain") for _ in range(6)):
        ms, _ = case.everything()
        walk = WidthWalk(case.choices, case.tally(), case.order)
        places = best_places(walk, float(0.5 * (ms.min() + ms.max())))
        assert places is not None
        for choice, place in zip(case.choices, places, strict=True):
            assert choice.widths[place] % case.block == 0 or place == len(choice.widths) - 1


def test_the_most_important_channels_stay():
    graph, scores = scored("vgg")
    model = Staircase(graph, block=4)
    found = solve(graph, scores, model.tally, within(graph, model, 0.5), step=4)
    for group_id, kept in found.keep.items():
        gone = np.setdiff1d(np.arange(graph.group(group_id).size), kept)
        if len(gone):
            assert scores[group_id][kept].min() >= scores[group_id][gone].max()


def test_limits_are_respected():
    graph, scores = scored("residual")
    model = Staircase(graph, block=4)
    limits = Constraints(max_cut=0.5, min_width=12)
    found = solve(graph, scores, model.tally, 0.9 * model.ms({}), step=4, constraints=limits)
    for group in graph.groups:
        assert found.widths[group.id] >= min(group.size, max(12, group.size // 2))


def test_scores_per_multiply_add_are_not_divided_twice():
    graph, scores = scored("vgg")
    model = Staircase(graph, block=4)
    budget = within(graph, model, 0.5)
    plain, per_mac = (solve(graph, scores, model.tally, budget, step=4, normalizer=n) for n in ("none", "per_mac"))
    assert plain.widths == per_mac.widths


# ---------------------------------------------------------------------- refusing


def test_a_budget_out_of_reach_says_what_can_be_reached_and_why_not_more():
    graph, scores = scored("residual")
    model = Staircase(graph, base=0.5)
    least = reach(graph, model.tally)
    with pytest.raises(BudgetError) as caught:
        solve(graph, scores, model.tally, least.fastest_ms * 0.9, layers_of=model.layers)
    message = caught.value.message
    assert f"the fastest plan is predicted to take {least.fastest_ms:.3g} ms" in message
    assert "that hardly shrink" in message
    assert "model output" in message
    offered = float(caught.value.hint.split()[2])
    assert least.fastest_ms <= offered <= least.fastest_ms * 1.01
    assert solve(graph, scores, model.tally, offered).predicted_ms <= offered
    assert caught.value.exit_code == 3


def test_a_model_nothing_can_be_cut_from_is_no_question_of_budget():
    graph, scores = scored("residual")
    model = Staircase(graph)
    with pytest.raises(InputError, match=r"none of the .* groups of this model may be cut"):
        solve(graph, scores, model.tally, 0.5 * model.ms({}), constraints=Constraints(exclude=("*",)))


def test_a_budget_of_the_whole_model_cuts_nothing():
    graph, scores = scored("residual")
    model = Staircase(graph)
    found = solve(graph, scores, model.tally, model.ms({}))
    assert found.widths == {g.id: g.size for g in graph.groups} | {b.id: 1 for b in graph.branches}
    assert found.dropped == ()
    assert found.importance == 1


def test_channels_a_normalisation_averages_over_are_cut_only_where_it_takes_that():
    graph, scores = scored("attention")
    model = Staircase(graph, block=4)
    kept, cut = (
        reach(graph, model.tally, step=4, constraints=Constraints(statistics=s)).fastest_ms for s in ("keep", "prune")
    )
    assert reach(graph, model.tally, step=4).fastest_ms == pytest.approx(cut)
    assert cut <= kept
    found = solve(graph, scores, model.tally, kept, step=4)
    assert all(found.widths[g.id] == g.size for g in graph.groups if g.changes_statistics)


def test_obstacles_name_slow_layers_layers_that_do_not_shrink_and_groups_that_stay_whole():
    graph, _ = scored("residual")
    limits = find_limits(graph, Constraints(exclude=(graph.groups[0].members[0].parameter,)), step=4, statistics=True)
    fast = [Layer("stem", "conv", 3.0), Layer("body", "conv", 0.5), Layer("head", "linear", 0.5)]
    dense = [Layer("stem", "conv", 3.2), Layer("body", "conv", 9.0), Layer("head", "linear", 0.5)]
    slow, stubborn, whole, frozen = obstacles(graph, limits, fast, dense)
    assert slow == "75 % of its time is in stem (3 ms), of 3 layers"
    assert stubborn == "88 % of its time is in 2 layers that hardly shrink: stem (3 ms), head (0.5 ms)"
    assert f"of {len(graph.groups)} groups stay whole: 1 excluded by" in whole
    assert frozen.startswith("channels that cannot be removed: ")
    assert len(obstacles(graph, limits, [])) == 2


# ---------------------------------------------------------------------- looking ahead


def test_the_outlook_adds_up():
    graph, scores = scored("vgg")
    model = Staircase(graph, block=4, base=0.0)
    found = look_ahead(graph, scores, model, Setting("openvino", "fp32"), budget=Budget(speedup=1.25), step=4)
    assert found.solution is not None
    assert found.solution.predicted_ms <= found.reach.dense_ms / 1.25
    assert found.reach.fastest_ms == pytest.approx(model.ms(found.reach.keep))
    total = sum(float(s.sum()) for s in scores.values())
    for group in graph.groups:
        time, kept = found.groups[group.id], found.reach.keep[group.id]
        alone = model.ms({}) - model.ms({group.id: kept})
        assert time.saved_ms == pytest.approx(alone)
        lost = float(scores[group.id].sort(descending=True).values[len(kept) :].sum())
        if alone > 1e-12:
            assert time.importance_per_ms == pytest.approx(lost / total / alone)
