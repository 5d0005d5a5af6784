"""Allocation, plans, removal and restoring."""

from __future__ import annotations

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from deploypruner.build.restore import restore
from deploypruner.channels.allocate import allocate, reachable
from deploypruner.channels.criteria.magnitude import Magnitude
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.remove import remove
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import BudgetError, InputError, PlanError, RecipeError, VerificationError
from deploypruner.graph import trace
from deploypruner.recipe.budget import Budget
from deploypruner.registries import normalizers, scopes
from tests.nets import NETS, Residual, make


def wide(width: int = 64) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 5))
        return nn.Sequential(*layers).eval()


def plan_for(model: nn.Module, x: torch.Tensor, macs: float, **options) -> tuple:
    graph = trace(model, x)
    scores = score_groups(graph, Magnitude(), None)
    return graph, allocate(graph, scores, Budget(macs), criterion="magnitude", **options)


BUDGETED = sorted(set(scopes) - {"recipe"})


@pytest.mark.parametrize("scope", BUDGETED)
@pytest.mark.parametrize("normalizer", normalizers)
@pytest.mark.parametrize("macs", [0.9, 0.5, 0.3])
def test_the_budget_is_met_to_one_channel_and_never_exceeded(scope, normalizer, macs):
    graph, plan = plan_for(wide(), torch.randn(2, 12), macs, scope=scope, normalizer=normalizer, step=1)
    assert plan.macs_after <= macs * plan.macs_before
    assert plan.macs_after >= macs * plan.macs_before - max(g.macs_per_channel for g in graph.groups)


@pytest.mark.parametrize("step", [8, 16, 32])
@pytest.mark.parametrize("scope", BUDGETED)
def test_widths_are_multiples_of_the_step(step, scope):
    _, plan = plan_for(wide(), torch.randn(2, 12), 0.5, scope=scope, step=step)
    widths = [len(g.keep) for g in plan.groups]
    assert all(width % step == 0 for width in widths)
    assert min(widths) < 64


def test_a_width_that_is_no_multiple_of_the_step_may_stay_or_is_rounded_down():
    _, plan = plan_for(wide(60), torch.randn(2, 12), 0.6, step=8)
    assert all(len(g.keep) == 60 or len(g.keep) % 8 == 0 for g in plan.groups)


def test_a_grouped_convolution_keeps_whole_steps_of_output_channels():
    """One column of 4 groups is 4 output channels, so a step of 8 is two columns."""
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 64, 3, groups=4), nn.ReLU(), nn.Conv2d(64, 8, 1)).eval()
    _, plan = plan_for(net, torch.randn(2, 3, 8, 8), 0.5, step=8)
    for group in plan.groups:
        outputs = [len(group.keep) * k for _, axis, k in group.members if axis == 0 and k > 1]
        assert all(width % 8 == 0 for width in outputs)


def test_the_least_important_channels_go_first():
    model = wide()
    with torch.no_grad():
        model[0].weight[::2] *= 1e-3
        model[0].bias[::2] = 0
        model[2].weight[:, ::2] *= 1e-3
    graph = trace(model, torch.randn(2, 12))
    scores = score_groups(graph, Magnitude(), None)
    keep = allocate(graph, scores, Budget(0.5), criterion="magnitude", normalizer="mean", step=1).keep["0.weight:0"]
    assert np.mean(keep % 2) > 0.9


def test_uniform_keeps_the_same_fraction_everywhere():
    _, plan = plan_for(wide(), torch.randn(2, 12), 0.4, scope="uniform", step=1)
    a, b = (len(g.keep) for g in plan.groups)
    assert abs(a - b) <= 1


def test_the_whole_budget_keeps_everything():
    _, plan = plan_for(wide(), torch.randn(2, 12), 1.0)
    assert plan.macs_after == plan.macs_before
    assert all(len(g.keep) == g.size for g in plan.groups)


def test_an_unreachable_budget_says_what_can_be_reached():
    graph = trace(wide(), torch.randn(2, 12))
    scores = score_groups(graph, Magnitude(), None)
    least = reachable(graph, 8) / graph.costs.macs()
    with pytest.raises(BudgetError, match=r"--macs 0.01 allows") as caught:
        allocate(graph, scores, Budget(0.01), criterion="magnitude")
    assert caught.value.exit_code == 3
    said = float(caught.value.hint.split("--macs ")[1].split(",")[0])
    assert least <= said < least + 0.001
    assert allocate(graph, scores, Budget(said), criterion="magnitude").macs_after == reachable(graph, 8)


@pytest.mark.parametrize("macs", [0, -1, 1.5, float("nan")])
def test_a_budget_out_of_range_is_refused(macs):
    with pytest.raises(RecipeError, match="0 < macs <= 1, got"):
        plan_for(wide(), torch.randn(2, 12), macs)


def test_an_unknown_scope_offers_the_nearest():
    with pytest.raises(RecipeError, match=r"no scope called 'globl'[\s\S]*did you mean 'global'"):
        plan_for(wide(), torch.randn(2, 12), 0.5, scope="globl")


def test_a_model_with_nothing_to_prune_says_why():
    with pytest.raises(
        InputError, match=r"nothing in this model can be pruned: weight \(model output\); weight \(mod"
    ):
        plan_for(nn.Linear(12, 5).eval(), torch.randn(2, 12), 0.5)


def test_layers_narrower_than_the_step_ask_for_a_smaller_step():
    with pytest.raises(
        InputError, match=r"multiple of 8 channels; the widest, '0.weight:0', has 6[\s\S]*smaller --step"
    ):
        plan_for(wide(6), torch.randn(2, 12), 0.5)


@pytest.mark.parametrize("name", sorted(set(NETS) - {"in place"}))  # nothing to prune there
def test_a_plan_survives_json(name):
    _, plan = plan_for(*make(name), 0.7, step=1)
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_for_another_model_names_the_first_mismatch():
    _, plan = plan_for(*make("residual"), 0.7, step=1)
    with pytest.raises(PlanError, match=r"prunes 'stem.0.weight:0', which this model does not have"):
        remove(trace(wide(), torch.randn(2, 12)), plan)
    wider = dataclasses.replace(plan.groups[0], size=99)
    graph = trace(*make("residual"))
    with pytest.raises(PlanError, match=r"'stem.0.weight:0' has 16 channels in this model and 99 in the plan"):
        remove(graph, dataclasses.replace(plan, groups=(wider, *plan.groups[1:])))
    other = dataclasses.replace(plan.groups[0], members=plan.groups[0].members[:-1])
    with pytest.raises(PlanError, match=r"'stem.0.weight:0' are used by other layers"):
        remove(graph, dataclasses.replace(plan, groups=(other, *plan.groups[1:])))


@pytest.mark.parametrize("document", [{}, {"format": 2}, {"format": 7}, {"format": 2, "groups": 3}])
def test_a_damaged_plan_is_refused(document):
    with pytest.raises(PlanError):
        Plan.from_json(document)


def test_a_wrong_removal_is_caught():
    """The proof can fail: keep other channels than the plan says."""
    right, plan = plan_for(*make("residual"), 0.7, step=1)
    group = plan.groups[0]
    swapped = dataclasses.replace(group, keep=tuple(range(group.size - len(group.keep), group.size)))
    wrong = dataclasses.replace(plan, groups=(swapped, *plan.groups[1:]))
    graph = dataclasses.replace(right, cut=lambda _: right.cut(right.removed(wrong.keep)))
    with pytest.raises(VerificationError, match=r"masked = removed \(float64\): max \|difference\|") as caught:
        remove(graph, plan)
    assert caught.value.exit_code == 4


def test_a_removed_module_trains_and_can_be_traced_again():
    net, x = make("residual")
    graph, plan = plan_for(net, x, 0.6, step=1)
    small = remove(graph, plan).train()
    small(x).square().sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    again = trace(small.eval(), x)
    assert again.costs.macs() == plan.macs_after


def test_restore_gives_the_saved_module_from_fresh_code(tmp_path):
    net, x = make("residual")
    graph, plan = plan_for(net, x, 0.6, step=1)
    small = remove(graph, plan)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    save_file({k: v.clone() for k, v in small.state_dict().items()}, tmp_path / "weights.safetensors")
    torch.testing.assert_close(restore(Residual(), tmp_path)(x), small(x))


def test_restore_names_what_is_missing_or_damaged(tmp_path):
    with pytest.raises(InputError, match=r"no plan file '.*plan\.json'\s+hint: .* is not a build folder"):
        restore(Residual(), tmp_path)
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(InputError, match=r"plan '.*plan\.json' is not valid JSON: .*\s+hint: compile again"):
        restore(Residual(), tmp_path)
    _, plan = plan_for(*make("residual"), 0.6, step=1)
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    with pytest.raises(InputError, match=r"no weights file '.*weights\.safetensors'"):
        restore(Residual(), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights\.safetensors' is empty \(0 bytes\)\s+hint: compile again"):
        restore(Residual(), tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    os.mkfifo(tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"weights\.safetensors' is a named pipe, not a file"):
        restore(Residual(), tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    (tmp_path / "weights.safetensors").write_bytes(b"\x10")
    with pytest.raises(InputError, match=r"weights.safetensors is truncated or corrupt"):
        restore(Residual(), tmp_path)
    save_file({"stem.0.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(PlanError, match=r"does not fit the pruned model"):
        restore(Residual(), tmp_path)


def test_channels_that_keep_a_tensor_alive_are_put_back():
    """Emptying one half of a split would leave a tensor without channels."""
    graph = trace(*make("branches"))
    keep = {g.id: np.arange(1) for g in graph.groups}
    for group_id, channels in graph.emptied(keep).items():
        keep[group_id] = np.union1d(keep[group_id], sorted(channels))
    assert not graph.emptied(keep)
    module = remove(graph, make_plan(graph, keep, criterion="none", scope="uniform", step=1))
    assert all(min(p.shape) > 0 for p in module.parameters())
