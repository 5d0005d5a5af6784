"""A budget of time on the way: what is gone costs nothing and stays gone, every step keeps its time, and the last
is never slower than one shot."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.channels.criteria import criteria
from deploypruner.channels.learned import Shrinking, learn
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.recipe.constraints import Constraints
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from deploypruner.search.gradual import Gradual
from deploypruner.search.losses import Losses, losses_from_scores, running_importance
from deploypruner.search.objectives import Space, named_objective, objectives, perturbed
from deploypruner.search.remaining import Remaining
from deploypruner.search.solve import with_branches
from tests.nets import conv_bn
from tests.recover_models import CLASSES, Images, interrupted_at
from tests.staircase import Staircase

pytestmark = pytest.mark.slow

GONE = np.array([], np.int64)
SETTINGS = FinetuneSettings(epochs=4, batch_size=8, lr=0.02, amp="off")


class Blocks(nn.Module):
    """Two residual blocks on one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(1, 12), nn.Linear(12, CLASSES)
        self.blocks = nn.ModuleList(nn.Sequential(conv_bn(12, 12), nn.Conv2d(12, 12, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.relu().mean((2, 3)))


def blocks() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Blocks().eval(), torch.randn(2, 1, 5, 5))


def clock(graph: Graph) -> Staircase:
    """Mostly multiply-adds, so that widths can halve the time too."""
    return Staircase(graph, block=2, base=0.005, rate=1.0)


def whole(graph: Graph) -> dict[str, np.ndarray]:
    return with_branches(graph, {g.id: np.arange(g.size) for g in graph.groups})


def gradual(graph: Graph, speedup: float = 2.0, objective: str = "measured worth", **constraints: object) -> Gradual:
    """The one-shot plan by the same objective is what it has to be as fast as."""
    scores = score_groups(graph, criteria.get("magnitude")(), None)
    order = {g: torch.argsort(s, descending=True).numpy() for g, s in scores.items()}
    losses = losses_from_scores(graph, running_importance(graph, scores, order, normalizer="none"))
    cheap_and_dear = {branch.id: 4.0 + 400.0 * i for i, branch in enumerate(graph.branches)}
    measured = Losses({g: 3 * line for g, line in losses.groups.items()}, cheap_and_dear)
    space = Space(graph, scores, "none", 2, Constraints(**constraints), measured=measured)
    latency = clock(graph)
    solution = named_objective(space, objective).solve(latency.tally, latency.ms({}) / speedup)
    plan = make_plan(graph, solution.keep, criterion="magnitude", scope="latency", step=2)
    return Gradual(space, objective, plan, latency.tally, solution.predicted_ms)


# ---------------------------------------------------------------------- what is left


def test_the_tally_of_what_is_left_is_that_of_the_plan_without_it():
    graph, rng = blocks(), np.random.default_rng(0)
    latency = clock(graph)
    order = {name: rng.permutation(channels) for name, channels in whole(graph).items()}
    left = {g.id: np.sort(rng.permutation(g.size)[: g.size // 2 + 1]) for g in graph.groups}
    left |= {graph.branches[1].id: GONE}
    tally = Remaining(latency.tally, order, left)
    assert tally.ms == pytest.approx(latency.ms(left))
    for name in order:
        widths = np.arange(1, len(order[name]) + 1)
        plans = [left | {name: np.intersect1d(order[name][:w], left.get(name, order[name]))} for w in widths]
        expected = [latency.ms({n: k if len(k) or n != name else left[n][:1] for n, k in p.items()}) for p in plans]
        if name != graph.branches[1].id:
            possible = np.array([len(plan[name]) > 0 for plan in plans])
            np.testing.assert_allclose(tally.sweep(name, widths)[possible], np.array(expected)[possible])
    gone = graph.branches[1].id
    assert tally.sweep(gone, np.array([0, 1])).tolist() == [tally.ms] * 2
    assert tally.keep(gone, np.zeros(1, np.int64)) == pytest.approx(latency.ms(left)), "it does not come back"
    first = graph.groups[0]
    assert tally.keep(first.id, np.arange(first.size)) == pytest.approx(latency.ms(left)), "nor do channels"


# ---------------------------------------------------------------------- the way there


def test_the_way_is_exponential_by_hand():
    found = replace(gradual(blocks()), final_ms=0.25)
    found = replace(found, tally_of=lambda order: Fixed())
    assert [found.target(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([4.0, 1.0, 0.25])


class Fixed:
    """Four milliseconds once a branch is gone, five before."""

    ms = 5.0

    def keep(self, name: str, channels: np.ndarray) -> None:
        assert not len(channels)
        self.ms = 4.0


@pytest.mark.parametrize("objective", ["measured worth", "scores", "uniform shares", "branches alone", "perturbed 2"])
def test_every_step_keeps_its_time_and_gives_nothing_back(objective):
    graph = blocks()
    search, latency = gradual(graph, 1.5, objective), clock(graph)
    left, rng = {g.id: np.arange(g.size) for g in graph.groups}, np.random.default_rng(0)
    for share in np.linspace(0.1, 1, 10).tolist():
        scores = {g.id: torch.as_tensor(rng.random(g.size)) for g in graph.groups}
        for group in graph.groups:
            scores[group.id][np.setdiff1d(np.arange(group.size), left[group.id])] = 0
        now = search.narrow(share, scores, left)
        gone = {branch.id for branch in graph.branches if branch.id in now}
        assert latency.ms(now) <= search.target(share) * (1 + 1e-9)
        assert gone == set(search.planned.dropped), "those of one shot, from the first step on"
        for group in graph.groups:
            if group.id not in {g for branch in gone for g in graph.branch(branch).groups}:
                assert set(now[group.id]) <= set(left[group.id])
        left = {name: left.get(name, kept) if name in inside(graph, gone) else kept for name, kept in now.items()}
    make_plan(graph, left)


def inside(graph: Graph, gone: set[str]) -> set[str]:
    return {group for branch in gone for group in graph.branch(branch).groups}


def test_a_last_step_that_finds_nothing_is_as_narrow_as_one_shot():
    graph = blocks()
    search = gradual(graph, depth="keep")
    left = {g.id: np.arange(g.size) for g in graph.groups}
    impossible = replace(search, final_ms=1e-6)
    assert impossible.narrow(0.99, search.space.scores, left) == left, "on the way it waits"
    found = impossible.narrow(1.0, search.space.scores, left)
    assert {g: len(kept) for g, kept in found.items()} == {g.id: len(g.keep) for g in search.planned.groups}


def test_the_measured_rate_of_exchange_is_kept_when_scores_change():
    """Twice the scores are twice the loss; at first it is what was measured."""
    search = gradual(blocks())
    scores, measured = search.space.scores, search.space.measured
    same, double = search._measured(scores), search._measured({g: 2 * s for g, s in scores.items()})
    for group, line in measured.groups.items():
        np.testing.assert_allclose(same.groups[group], line, atol=1e-6)
        np.testing.assert_allclose(double.groups[group], 2 * line, atol=1e-6)


def test_every_objective_is_found_by_its_name():
    space = gradual(blocks()).space
    for objective in objectives(space):
        assert named_objective(space, objective.name).name == objective.name
    assert (
        named_objective(space, "perturbed 3").name == [next(o) for o in [perturbed(space)] for _ in range(3)][2].name
    )
    assert named_objective(space, "of another version").name == objectives(space)[0].name


# ---------------------------------------------------------------------- while training


def regime(graph: Graph, search: Gradual, criterion: str = "magnitude") -> Shrinking:
    return Shrinking(
        graph,
        search.planned,
        criteria.get(criterion)(),
        schedule="iterative",
        settings=LearnSettings(every=4),
        narrow=search.narrow,
        before=dict(search.space.scores),
    )


@pytest.mark.parametrize("depth", ["auto", "keep"])
@pytest.mark.parametrize("labelled", [True, False])
def test_training_ends_within_the_time_and_what_went_stayed_gone(depth, labelled):
    graph = blocks()
    search, latency = gradual(graph, depth=depth), clock(graph)
    chosen, seen = regime(graph, search), list[dict[str, np.ndarray]]()
    chosen.after_step = lambda step: seen.append(chosen.keep())
    learned = learn(graph, Images(80, labelled=labelled), chosen, SETTINGS)
    assert latency.ms(learned.plan.keep) <= search.final_ms * (1 + 1e-9)
    assert latency.ms(learned.plan.keep) >= 0.6 * search.final_ms
    times = [latency.ms(keep) for keep in seen]
    assert len({round(ms, 9) for ms in times}) >= (2 if depth == "auto" else 3)
    for earlier, later in itertools.pairwise(seen):
        assert all(set(later[name].tolist()) <= set(kept.tolist()) for name, kept in earlier.items())
    assert learned.plan.dropped == search.planned.dropped
    assert bool(learned.plan.dropped) == (depth == "auto")
    assert all(np.array_equal(keep[branch], GONE) for keep in seen for branch in search.planned.dropped)
    with holding(graph, learned.weights):
        module, checks = remove_and_prove(graph, learned.plan)
        assert all(check.passed for check in checks)
    assert sum(p.numel() for p in module.parameters()) == learned.plan.params_after


def test_an_interrupted_training_toward_a_time_ends_in_the_same_bits(tmp_path: Path):
    graph, checkpoint = blocks(), tmp_path / "c.safetensors"
    search = gradual(graph)
    trained = regime(graph, search)
    whole = learn(graph, Images(80), trained, SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        learn(
            graph,
            Images(80),
            regime(graph, search),
            SETTINGS,
            checkpoint=checkpoint,
            validate=interrupted_at(2),
        )
    fresh = regime(graph, search)
    again = learn(graph, Images(80), fresh, SETTINGS, checkpoint=checkpoint, validate=lambda module: 0.0)
    assert again.history.resumed == 1
    assert again.plan == whole.plan
    assert again.plan.dropped
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())
    assert all(torch.equal(fresh.scores[g], score) for g, score in trained.scores.items())
