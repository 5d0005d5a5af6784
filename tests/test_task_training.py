"""Recovery of models that are no classifiers: labels of each kind train, and every output counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.recipe import Recipe, RecoverRecipe
from deploypruner.recipe.finetune import FinetuneSettings
from tests.builds import stopped_before

pytestmark = pytest.mark.slow


class Pooled(nn.Module):
    """One number: half the sum of what 16 channels see."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 16, 3, padding=1), nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu().mean((2, 3)))


class Heads(Pooled):
    """Classes and a number, in a dict."""

    def __init__(self) -> None:
        super().__init__(3)
        self.size = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = self.a(x).relu().mean((2, 3))
        return {"kind": 5 * self.b(found), "size": self.size(found)}


class Boxes(Pooled):
    """A box and a score at every place."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.a(x).relu().flatten(2).transpose(1, 2)
        return self.b(found)[..., :4], self.b(found)[..., 4:]


class Places(nn.Sequential):
    """Scores of three classes at every pixel."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))


def seeded(make: Any, *arguments: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*arguments).eval()


def pictures(count: int = 64) -> Tensor:
    x = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    return (
        x
        * torch.linspace(0.2, 3, count)[torch.randperm(count, generator=torch.Generator().manual_seed(2))][
            :, None, None, None
        ]
    )


def recovered(net: nn.Module, data: list[Any], out: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    """Facts of recovery, and what the log said."""
    said: list[str] = []
    recover = RecoverRecipe(epochs=6, settings=FinetuneSettings(batch_size=16, lr=0.02, **settings))
    with stopped_before("quantize"), pytest.raises(KeyboardInterrupt):
        dp.compile(net, torch.zeros(2, 2, 6, 6), data=data, recipe=Recipe(recover=recover), out=out, say=said.append)
    return json.loads((out / "stages" / "recover.json").read_text()), "\n".join(said)


def batched(x: Tensor, *labels: Tensor) -> list[Any]:
    given = labels[0] if len(labels) == 1 else tuple(labels)
    parts = [given] if isinstance(given, Tensor) else list(given)
    cut = [[part[i : i + 16] for part in parts] for i in range(0, len(x), 16)]
    return [(x[16 * i : 16 * (i + 1)], rows[0] if len(rows) == 1 else tuple(rows)) for i, rows in enumerate(cut)]


def test_a_regressor_learns_from_its_labels_what_its_teacher_does_not_know(tmp_path: Path) -> None:
    net, x = seeded(Pooled), pictures()
    with torch.no_grad():
        wanted = 2 * net(x)  # the dense model says half of it
    facts, said = recovered(net, batched(x, wanted), tmp_path, distill=0.0)
    assert facts["loss"] == "squared error and relative error of the outputs"
    assert "6 epochs by squared error" in said
    assert facts["metric"]["name"] == "R2"
    assert facts["accuracy_recovered"] > facts["accuracy_dense"] + 0.1


def test_masks_train_by_pixels(tmp_path: Path) -> None:
    net, x = seeded(Places), pictures()
    with torch.no_grad():
        masks = net(x).argmax(1)
    facts, said = recovered(net, batched(x, masks), tmp_path)
    assert facts["loss"] == "cross-entropy and KL to the dense outputs"
    assert facts["metric"]["name"] == "mIoU"
    assert facts["accuracy_dense"] == 100
    assert "6 epochs by cross-entropy" in said


def test_decisions_train_as_decisions(tmp_path: Path) -> None:
    net, x = seeded(Pooled), pictures()
    with torch.no_grad():
        net.b.bias -= net(x).median()
        wanted = (net(x) > 0).long()
    facts, _ = recovered(net, batched(x, wanted), tmp_path)
    assert facts["loss"] == "binary cross-entropy and binary KL to the dense outputs"
    assert facts["accuracy_recovered"] >= 90


def test_two_heads_in_a_dict_are_both_trained_by_their_own_labels(tmp_path: Path) -> None:
    net, x = seeded(Heads), pictures()
    with torch.no_grad():
        answer = net(x)
    facts, said = recovered(net, batched(x, answer["kind"].argmax(1), 2 * answer["size"]), tmp_path, distill=0.0)
    assert facts["loss"] == (
        "output_0: cross-entropy and KL to the dense outputs, "
        "output_1: squared error and relative error of the outputs"
    )
    assert "output_1: squared error" in said


def test_targets_of_detections_are_unlabelled_data_and_all_outputs_are_mimicked(tmp_path: Path) -> None:
    net, x = seeded(Boxes, 6), pictures()
    targets = [{"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)} for _ in range(16)]
    facts, said = recovered(net, [(part, targets) for part in x.split(16)], tmp_path)
    assert facts["loss"] == "relative error of the outputs"
    assert "unlabelled" in said


def test_vectors_are_taught_by_their_direction(tmp_path: Path) -> None:
    class Unit(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.normalize(super().forward(x))

    facts, _ = recovered(seeded(Unit, 8), list(pictures().split(16)), tmp_path)
    assert facts["loss"] == "cosine distance to the dense outputs"
    assert facts["epochs"] == 6
