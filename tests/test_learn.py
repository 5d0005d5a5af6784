"""Learning ends in exactly the plan's widths, goes on to the bit, and the result is removed and proved."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.build.learning import schedule_name
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria import criteria
from deploypruner.channels.criteria.dtp import Dtp
from deploypruner.channels.criteria.pdp import Pdp
from deploypruner.channels.learned import (
    ChannelRegime,
    Shrinking,
    learn,
    learned_regime,
    toward_budget,
    toward_widths,
)
from deploypruner.channels.learned.learned import TransportGates
from deploypruner.channels.learned.schedules import rankings
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.recipe import LearnRecipe
from deploypruner.recipe.budget import Budget
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from deploypruner.train.batchnorm import reestimate_batchnorm
from tests.nets import conv_bn
from tests.recover_models import CLASSES, Images, interrupted_at

pytestmark = pytest.mark.slow

SETTINGS = FinetuneSettings(epochs=4, batch_size=8, lr=0.02, amp="off")
KINDS = ("pdp", "dtp", "iterative", "iterative to widths", "gradual")


class Small(nn.Module):
    """A residual stream and a shortcut without a norm, small enough for many trainings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.down = conv_bn(1, 8), conv_bn(8, 8), conv_bn(8, 12)
        self.project, self.head = nn.Conv2d(8, 12, 1), nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.body(x)
        return self.head((self.down(x) + self.project(x)).relu().mean((2, 3)))


def small() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Small().eval(), torch.randn(2, 1, 5, 5))


def planned(graph: Graph, scores: dict[str, Tensor], macs: float = 0.5) -> Plan:
    return allocate(graph, scores, Budget(macs=macs), criterion="magnitude", normalizer="mean", step=2)


def regime(graph: Graph, kind: str, criterion: str = "taylor", pace: LearnSettings | None = None) -> ChannelRegime:
    scores = score_groups(graph, criteria.get("magnitude")(), None)
    plan = planned(graph, scores)
    if kind in ("pdp", "dtp"):
        return learned_regime(graph, plan, criteria.get(kind)())
    narrow = toward_widths(graph, plan)
    if kind == "iterative":
        narrow = toward_budget(0.5, lambda scores, macs: planned(graph, scores, macs))
    return Shrinking(
        graph,
        plan,
        criteria.get(criterion)(),
        schedule=kind.split()[0],
        settings=pace or LearnSettings(),
        narrow=narrow,
        before=scores,
    )


def widths(plan: Plan) -> dict[str, int]:
    return {g.id: len(g.keep) for g in plan.groups}


@pytest.mark.parametrize("kind", KINDS)
def test_training_ends_in_the_widths_of_the_plan_and_the_removal_is_proved(kind):
    graph = small()
    before = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    chosen = regime(graph, kind)
    learned = learn(graph, Images(), chosen, SETTINGS)
    if kind == "iterative":  # widths follow the budget, not the first plan
        assert learned.plan.macs_after <= 0.5 * learned.plan.macs_before
    else:
        assert widths(learned.plan) == widths(chosen.plan)
    with holding(graph, learned.weights):
        module, checks = remove_and_prove(graph, learned.plan)
    assert all(check.passed for check in checks)
    assert sum(p.numel() for p in module.parameters()) == learned.plan.params_after
    assert all(torch.equal(tensor, before[name]) for name, tensor in graph.module.state_dict().items())


@pytest.mark.parametrize("kind", KINDS)
def test_what_training_ends_in_is_what_remains(kind):
    """The student with its hard weights computes what the removed module does: nothing was left half open."""
    graph = small()
    learned = learn(graph, Images(), regime(graph, kind), SETTINGS)
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(3))
    with holding(graph, learned.weights):
        module, _ = remove_and_prove(graph, learned.plan)
        torch.testing.assert_close(graph.module.eval()(x), module.eval()(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_plan_and_weights_also_after_an_interruption(kind, tmp_path: Path):
    graph, checkpoint = small(), tmp_path / "c.safetensors"
    whole = learn(graph, Images(), regime(graph, kind), SETTINGS)

    with pytest.raises(KeyboardInterrupt):
        learn(graph, Images(), regime(graph, kind), SETTINGS, checkpoint=checkpoint, validate=interrupted_at(2))
    again = learn(graph, Images(), regime(graph, kind), SETTINGS, checkpoint=checkpoint, validate=lambda module: 0.0)
    assert again.history.resumed == 1
    assert again.plan == whole.plan
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())


@pytest.mark.parametrize("kind", ["pdp", "dtp"])
def test_masks_are_decided_at_the_end_of_a_training(kind):
    graph = small()
    chosen = regime(graph, kind)
    learned = learn(graph, Images(80), chosen, replace(SETTINGS, epochs=6))
    assert learned.undecided <= 0.1


@pytest.mark.parametrize("kind", ["iterative", "gradual"])
def test_a_schedule_takes_channels_away_little_by_little_and_never_gives_one_back(kind):
    graph = small()
    chosen = regime(graph, kind)
    kept: list[dict[str, set[int]]] = []
    chosen.after_step = lambda step: kept.append({g: set(k.tolist()) for g, k in chosen.keep().items()})
    learn(graph, Images(80), chosen, SETTINGS)
    counts = [sum(map(len, each.values())) for each in kept]
    assert len(set(counts)) > 3
    assert all(later[g] <= earlier[g] for earlier, later in itertools.pairwise(kept) for g in later)


@pytest.mark.parametrize("criterion", ["magnitude", "taylor"])
def test_every_schedule_takes_every_criterion_that_training_can_evaluate(criterion):
    graph = small()
    plan = learn(graph, Images(), regime(graph, "gradual", criterion), SETTINGS).plan
    assert widths(plan) == widths(regime(graph, "gradual", criterion).plan)


def test_learning_without_labels_goes_by_the_dense_model():
    graph = small()
    chosen = regime(graph, "iterative")
    learned = learn(graph, Images(labelled=False), chosen, SETTINGS)
    assert learned.plan.macs_after <= 0.5 * learned.plan.macs_before


def test_transport_scores_learn_which_channels_matter():
    """Every other channel of the stem is read by nobody; the dense model's outputs tell, the weights stand still."""
    graph = small()
    with torch.no_grad():
        for name in ("body.0.weight", "down.0.weight", "project.weight"):
            graph.module.get_parameter(name)[:, ::2] = 0
    data = Images(labelled=False)
    epoch = data.epoch(batch_size=8, seed=0, shuffle=True, augment=False)
    reestimate_batchnorm(graph.module, epoch, max_batches=5)
    plan = make_plan(graph, {"stem.0.weight:0": np.arange(4)})
    settings = replace(SETTINGS, epochs=6, lr=1e-6)
    learned = learn(graph, data, learned_regime(graph, plan, Dtp()), settings)
    assert learned.plan.keep["stem.0.weight:0"].tolist() == [1, 3, 5, 7]


def test_the_gradient_of_pdp_reaches_weights_through_the_masks():
    graph = small()
    chosen = regime(graph, "pdp")
    chosen.begin(graph.module, 100)
    weights = chosen.weights(50)  # half way up the ramp
    name = "body.0.weight"  # it is not gated itself: its batch norm is
    assert name not in weights
    parameter = chosen.parameters[name]
    sum(w.square().sum() for w in weights.values()).backward()
    assert float(parameter.grad.abs().max()) > 0
    graph.module.zero_grad()


def test_what_a_skipped_step_should_have_taken_goes_at_the_next():
    """fp16 steps that overflow call neither `after_backward` nor `after_step`."""
    graph = small()
    chosen = regime(graph, "gradual", "magnitude", LearnSettings(every=3))
    chosen.begin(graph.module, 10)
    assert list(chosen.rankings) == [2, 5]
    for step in (0, 1, 3, 4):
        chosen.after_backward(step)
    counts = {g: len(k) for g, k in chosen.keep().items()}
    assert sum(counts.values()) < sum(g.size for g in graph.groups)
    whole = {name: tensor.clone() for name, tensor in graph.module.state_dict().items()}
    chosen.finish(graph.module)
    assert {g: len(k) for g, k in chosen.result.keep.items()} == widths(chosen.plan)
    graph.module.load_state_dict(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_travels_with_the_state_from_the_process_that_trained(kind):
    graph = small()
    trained, fresh = regime(graph, kind), regime(graph, kind)
    learned = learn(graph, Images(), trained, replace(SETTINGS, epochs=2))
    fresh.begin(graph.module, 10)
    fresh.load_state({name: tensor.clone() for name, tensor in trained.state().items()})
    assert {g: k.tolist() for g, k in fresh.result.keep.items()} == {
        g: k.tolist() for g, k in learned.plan.keep.items()
    }
    assert fresh.result.undecided == learned.undecided


def test_undecided_transports_get_a_lower_temperature():
    graph = small()
    chosen = learned_regime(graph, regime(graph, "dtp").plan, Dtp(beta=1e6))
    assert isinstance(chosen, TransportGates)
    learned = learn(graph, Images(), chosen, SETTINGS)
    assert chosen.halvings == 4
    assert learned.undecided == 1.0
    assert widths(learned.plan) == widths(chosen.plan)


# ---------------------------------------------------------------------- the pace


def test_rankings_by_hand():
    assert rankings("iterative", LearnSettings(every=10, channels=30), 100, 70) == {9: 30 / 70, 19: 60 / 70, 29: 1.0}
    assert rankings("iterative", LearnSettings(every=10), 100, 70) == pytest.approx(
        {9: 0.2, 19: 0.4, 29: 0.6, 39: 0.8, 49: 1.0}
    )
    assert rankings("gradual", LearnSettings(every=35), 100, 70) == pytest.approx({34: 0.875, 69: 1.0})


@pytest.mark.parametrize("schedule", ["iterative", "gradual"])
@pytest.mark.parametrize("steps", [1, 2, 3, 17, 100, 5000])
def test_the_default_pace_fits_into_every_training_and_ends_with_everything_gone(schedule, steps):
    found = rankings(schedule, LearnSettings(), steps, 64)
    assert max(found) < steps
    assert list(found.values()) == sorted(found.values())
    assert found[max(found)] == 1.0


def test_too_few_steps_for_the_pace_are_refused():
    graph = small()
    with pytest.raises(RecipeError, match=r"take \d+ training steps, and there are 20[\s\S]*raise --learn-epochs"):
        learn(graph, Images(), regime(graph, "iterative", pace=LearnSettings(every=10, channels=1)), SETTINGS)


@pytest.mark.parametrize(
    ("options", "said"),
    [({"every": -1}, "learn.pace.every must be at least 0"), ({"momentum": 1.0}, r"learn.pace.momentum must be in")],
)
def test_a_pace_out_of_range_is_refused(options, said):
    with pytest.raises(RecipeError, match=said):
        LearnSettings(**options)


def test_momentum_averages_scores_over_rankings():
    graph = small()
    chosen = regime(graph, "iterative", pace=LearnSettings(every=1, channels=1, momentum=0.75))
    first = {g.id: torch.full((g.size,), 4.0) for g in graph.groups}
    second = {g.id: torch.full((g.size,), 8.0) for g in graph.groups}
    assert chosen._ranked(first)["stem.0.weight:0"].tolist() == [4.0] * 8
    assert chosen._ranked(second)["stem.0.weight:0"].tolist() == [5.0] * 8


# ---------------------------------------------------------------------- what goes together


@pytest.mark.parametrize(
    ("schedule", "criterion", "resolved"),
    [
        ("auto", "magnitude", "one-shot"),
        ("auto", "dtp", "learned"),
        ("learned", "pdp", "learned"),
        ("gradual", "taylor", "gradual"),
    ],
)
def test_a_schedule_follows_from_the_criterion(schedule, criterion, resolved):
    assert schedule_name(LearnRecipe(schedule=schedule), criteria.get(criterion)()) == resolved


@pytest.mark.parametrize(
    ("schedule", "criterion", "said"),
    [
        ("iteratve", "taylor", r"no schedule called 'iteratve'[\s\S]*did you mean 'iterative'"),
        ("iterative", "dtp", r"criterion 'dtp' trains its masks and has a schedule of its own, not 'iterative'"),
        ("learned", "taylor", r"criterion 'taylor' has no masks that could be learned"),
    ],
)
def test_what_does_not_go_together_is_refused(schedule, criterion, said):
    with pytest.raises(RecipeError, match=said):
        schedule_name(LearnRecipe(schedule=schedule), criteria.get(criterion)())


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Pdp, {"temperature": 0.0}), (Pdp, {"start": 0.9}), (Dtp, {"lr": 0.0}), (Dtp, {"beta": -1.0})],
)
def test_a_learned_criterion_refuses_parameters_out_of_range(cls, options):
    with pytest.raises(RecipeError, match=r"^criterion\."):
        cls(**options)


@pytest.mark.parametrize("name", ["pdp", "dtp"])
def test_the_widths_of_a_learned_plan_are_those_of_taylor(name):
    graph, (inputs, labels) = small(), next(Images().epoch(batch_size=8, seed=0, shuffle=False, augment=False))
    learned, taylor = criteria.get(name)(), criteria.get("taylor")()
    ours, theirs = (score_groups(graph, c, [(inputs, labels)]) for c in (learned, taylor))
    assert learned.normalizer == taylor.normalizer
    assert all(torch.equal(ours[group], theirs[group]) for group in theirs)


@pytest.mark.parametrize("kind", ["pdp", "dtp"])
def test_the_last_tenth_of_a_training_has_hard_masks_that_do_not_change(kind):
    graph = small()
    chosen = regime(graph, kind)
    seen: list[tuple[bool, dict[str, Tensor]]] = []
    chosen.after_step = lambda step: seen.append((chosen.is_hard, chosen.soft()))
    learn(graph, Images(), chosen, SETTINGS)  # 20 steps
    assert [hard for hard, _ in seen] == [False] * 18 + [True] * 2
    for group, mask in seen[-1][1].items():
        assert torch.equal(mask, seen[-2][1][group])
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert int(mask.sum()) == chosen.chosen[group]


@pytest.mark.parametrize("name", criteria)
def test_a_criterion_that_says_it_is_learned_has_a_training_for_its_masks(name):
    graph = small()
    plan, criterion = regime(graph, "gradual").plan, criteria.get(name)()
    if criterion.learned:
        assert isinstance(learned_regime(graph, plan, criterion), ChannelRegime)
    else:
        with pytest.raises(AssertionError, match="no training of its masks"):
            learned_regime(graph, plan, criterion)
