"""Which channels stay: the criterion's scores say how many, the layers behind say which."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from deploypruner.build.channels import chosen_by_readers, reordered
from deploypruner.channels.feasible_widths import by_importance
from deploypruner.errors import RecipeError
from deploypruner.graph import trace
from deploypruner.recipe import LearnRecipe, PruneRecipe, RecoverRecipe
from tests.builds import run_cli, stopped_before

pytestmark = pytest.mark.slow


def test_values_stay_and_go_to_the_channels_in_their_new_order():
    score = torch.tensor([5.0, -1.0, 3.0, 3.0, 0.0])
    order = np.array([3, 4, 1, 0, 2])
    found = reordered(score, order)
    assert by_importance({"g": found})["g"].tolist() == order.tolist()
    torch.testing.assert_close(found[torch.as_tensor(order)], torch.tensor([5.0, 3.0, 3.0, 0.0, -1.0]).double())
    assert by_importance({"g": reordered(torch.zeros(4), np.array([2, 0, 3, 1]))})["g"].tolist() == [2, 0, 3, 1]


def a_build(data: object = "digits", **recipes: object) -> SimpleNamespace:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    known = {"prune": PruneRecipe(macs=0.5), "recover": RecoverRecipe(), "learn": LearnRecipe(), **recipes}
    return SimpleNamespace(data=data, traced=trace(net, torch.randn(2, 4)), recipe=SimpleNamespace(**known))


def test_readers_choose_unless_somebody_said_otherwise():
    assert chosen_by_readers(a_build())
    assert not chosen_by_readers(a_build(data=None))
    assert not chosen_by_readers(a_build(prune=PruneRecipe(macs=0.5, criterion="taylor"))), "the user named scores"
    assert not chosen_by_readers(a_build(recover=RecoverRecipe(reconstruct=False))), "nothing is solved anew"
    assert not chosen_by_readers(a_build(learn=LearnRecipe(schedule="gradual"))), "training chooses"
    assert not chosen_by_readers(a_build(prune=PruneRecipe(macs=0.5, channels="scores")))
    assert chosen_by_readers(a_build(prune=PruneRecipe(macs=0.5, channels="readers", criterion="magnitude")))
    sparse = a_build()
    with torch.no_grad():
        for parameter in sparse.traced.module.parameters():
            parameter.mul_(torch.arange(parameter.numel()).view(parameter.shape) % 2)
    assert not chosen_by_readers(sparse), "zeros that stay are not solved anew"


def test_readers_need_data():
    with pytest.raises(RecipeError, match="--channels readers solves layers on data") as caught:
        chosen_by_readers(a_build(data=None, prune=PruneRecipe(macs=0.5, channels="readers")))
    assert caught.value.hint == "pass --data DIR"


def test_the_same_widths_with_other_channels(tmp_path: Path):
    plans = {}
    for how in ("scores", "readers"):
        build = ("compile", "tiny.pt2", "--data", "labelled.npz", "--epochs", "0", "--macs", "0.5", "--step", "2")
        with stopped_before("remove"):
            outcome = run_cli(*build, "--channels", how, "--out", str(tmp_path / how))
        assert outcome.code == 130, outcome.err
        plan = json.loads((tmp_path / how / "plan.json").read_text())
        plans[how] = {g["id"]: g["keep"] for g in plan["groups"]}
    assert {g: len(kept) for g, kept in plans["scores"].items()} == {g: len(k) for g, k in plans["readers"].items()}
    assert plans["scores"] != plans["readers"]
