"""Residual branches that go while training: gates in the student, and plans that drop some from the start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call

from deploypruner.channels.criteria import criteria
from deploypruner.channels.learned import ChannelRegime, Shrinking, learn, learned_regime, toward_widths
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.channels.statistics import score_groups
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.branch_gates import gate_name, with_branch_gates
from deploypruner.graph.execute.parameter_override import holding
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.recipe.learn import LearnSettings
from tests.nets import make
from tests.recover_models import Images, interrupted_at
from tests.test_learn import small
from tests.test_search_worth import Overwritten, seeded

pytestmark = pytest.mark.slow

GONE = np.array([], np.int64)
SETTINGS = FinetuneSettings(epochs=2, batch_size=8, lr=0.02, amp="off")
KINDS = ("pdp", "dtp", "gradual", "iterative")


def traced(name: str) -> Graph:
    if name == "overwritten":
        return trace(seeded(Overwritten), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    return trace(*make(name)) if name != "small" else small()


@pytest.mark.parametrize("name", ["small", "overwritten", "residual", "attention", "squeeze-excite"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_of_zero_is_a_branch_that_was_cut_out(name, dtype):
    graph = traced(name)
    student = with_branch_gates(graph, [branch.id for branch in graph.branches]).eval()
    example = graph.example_inputs[0]
    x = torch.randn(example.shape, generator=torch.Generator().manual_seed(3))
    kinds = {"device_type": "cpu", "dtype": dtype, "enabled": dtype != torch.float32}
    with torch.no_grad(), torch.autocast(**kinds):
        assert torch.equal(student(x), graph.module.eval()(x))
        for branch in graph.branches:
            gates = {gate_name(graph, branch.id): torch.zeros(())}
            cut = graph.cut(graph.removed({branch.id: GONE})).eval()
            torch.testing.assert_close(functional_call(student, gates, (x,)), cut(x))


def test_there_are_branches_to_gate_in_these_networks():
    assert sum(len(traced(name).branches) for name in ("small", "overwritten", "residual")) >= 3


def without_a_branch(graph: Graph, kind: str) -> ChannelRegime:
    """Half of the last group goes, and the only branch."""
    plan = make_plan(graph, {"body.0": GONE, "down.0.weight:0": np.arange(6)})
    assert plan.dropped == ("body.0",)
    if kind in ("pdp", "dtp"):
        return learned_regime(graph, plan, criteria.get(kind)())
    return Shrinking(
        graph,
        plan,
        criteria.get("taylor")(),
        schedule=kind,
        settings=LearnSettings(),
        narrow=toward_widths(graph, plan),
        before=score_groups(graph, criteria.get("magnitude")(), None),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_branch_that_the_plan_drops_is_gone_while_training_and_stays_gone(kind):
    graph = small()
    chosen = without_a_branch(graph, kind)
    before = graph.module.get_parameter("body.0.weight").clone()
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=0.02, amp="off", weight_decay=0.0)
    learned = learn(graph, Images(), chosen, settings)
    assert learned.plan.dropped == ("body.0",)
    assert {g.id: len(g.keep) for g in learned.plan.groups} == {g.id: len(g.keep) for g in chosen.plan.groups}
    assert torch.equal(learned.weights["body.0.weight"], before), "what is gone learns nothing"
    assert set(learned.weights) == set(graph.module.state_dict())
    with holding(graph, learned.weights):
        module, checks = remove_and_prove(graph, learned.plan)
    assert all(check.passed for check in checks)
    assert not [name for name, _ in module.named_parameters() if name.startswith("body.0")]


@pytest.mark.parametrize("kind", ["dtp", "iterative"])
def test_without_a_branch_an_interrupted_training_ends_in_the_same_bits(kind, tmp_path: Path):
    graph, checkpoint = small(), tmp_path / "c.safetensors"
    whole = learn(graph, Images(), without_a_branch(graph, kind), SETTINGS)
    with pytest.raises(KeyboardInterrupt):
        learn(
            graph,
            Images(),
            without_a_branch(graph, kind),
            SETTINGS,
            checkpoint=checkpoint,
            validate=interrupted_at(2),
        )
    again = learn(
        graph, Images(), without_a_branch(graph, kind), SETTINGS, checkpoint=checkpoint, validate=lambda module: 0.0
    )
    assert again.history.resumed == 1
    assert again.plan == whole.plan
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())
