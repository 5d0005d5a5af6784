"""Few images, no labels: the pruned network mimics the dense one's features, found in the graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deploypruner as dp
from deploypruner.graph import Graph
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import Batch
from deploypruner.train.features import WithFeatures, find_features
from deploypruner.train.finetune import finetune
from deploypruner.train.learning_rate import learning_rate
from deploypruner.train.losses import feature_loss
from tests.recover_models import same

pytestmark = pytest.mark.slow


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = F.relu(x + self.b(x))
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


@dataclass
class Photographs:
    count: int = 24
    labelled: bool = False

    @property
    def samples(self) -> int:
        return self.count

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        x = torch.randn(self.count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(seed))
        for rows in (order if shuffle else torch.arange(self.count)).split(batch_size):
            yield (x[rows],), None


def traced() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
        model(torch.randn(64, 3, 6, 6) * 2)
    return dp.trace(model.eval(), (torch.randn(2, 3, 6, 6),))


STREAM = np.array([0, 2, 3, 5, 7])
FEW = FinetuneSettings(
    epochs=30, batch_size=8, lr=0.02, amp="off", mimic=1.0, freeze_batchnorm=True, schedule="step", augment=False
)


def pruned(graph: Graph, *, drop: bool = False) -> tuple[nn.Module, dict[str, np.ndarray]]:
    keep = {graph.groups[0].id: STREAM}
    if drop:
        keep[graph.branches[0].id] = np.array([], np.int64)
    return graph.cut(graph.removed(keep)).eval(), keep


@pytest.mark.parametrize("drop", [False, True])
def test_features_are_what_is_pooled_for_the_last_layer_at_the_kept_channels(drop: bool) -> None:
    graph = traced()
    module, keep = pruned(graph, drop=drop)
    found = find_features(graph, keep, module)
    assert found is not None
    assert found.kept == ((1, tuple(STREAM.tolist())),)
    x = torch.randn(4, 3, 6, 6)
    output, dense = WithFeatures(graph.module, found.dense)((x,), {})
    _, ours = WithFeatures(module, found.pruned)((x,), {})
    assert dense.shape == (4, 8, 6, 6)
    assert found.of_dense(dense).shape == ours.shape
    expected = graph.module(x)
    torch.testing.assert_close(output[0], expected)
    head = graph.module.get_submodule("head")
    torch.testing.assert_close(F.linear(dense.mean((2, 3)), head.weight, head.bias), expected)


def test_without_pooling_features_are_what_the_last_layer_reads() -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    graph = dp.trace(model, (torch.randn(2, 4),))
    found = find_features(graph, {}, graph.cut(graph.removed({})))
    assert found is not None
    assert (found.dense, found.pruned, found.kept) == ("relu", "relu", ())
    single = dp.trace(nn.Sequential(nn.Linear(4, 2)).eval(), (torch.randn(2, 4),))
    assert find_features(single, {}, single.cut(single.removed({}))) is None


def test_the_loss_is_relative_to_the_dense_features() -> None:
    ours, theirs = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])
    assert float(feature_loss(ours, theirs)) == 2.0
    assert float(feature_loss(100 * ours, 100 * theirs)) == 2.0
    assert float(feature_loss(ours, torch.zeros(2))) > 0


def off(graph: Graph, module: nn.Module, keep: dict[str, np.ndarray]) -> tuple[float, float]:
    """Error of the features and of the outputs, relative."""
    found = find_features(graph, keep, module)
    assert found is not None
    x = next(Photographs().epoch(batch_size=24, seed=0, shuffle=False, augment=False))[0][0]
    with torch.no_grad():
        theirs, dense = WithFeatures(graph.module, found.dense)((x,), {})
        output, ours = WithFeatures(module.eval(), found.pruned)((x,), {})
        return float(feature_loss(ours, found.of_dense(dense))), float(feature_loss(output[0], theirs[0]))


def test_mimicking_brings_features_and_outputs_nearer_and_leaves_statistics_alone() -> None:
    graph = traced()
    module, keep = pruned(graph)
    before, statistics = off(graph, module, keep), copy.deepcopy(dict(module.named_buffers()))
    outputs_only = copy.deepcopy(module)
    features = find_features(graph, keep, module)
    finetune(module, graph.module, Photographs(), FEW, features=features)
    finetune(outputs_only, graph.module, Photographs(), replace(FEW, mimic=0.0), features=features)
    after, without = off(graph, module, keep), off(graph, outputs_only, keep)
    assert after[0] < 0.5 * before[0]
    assert after[1] < 0.9 * before[1]
    assert after[0] < 0.7 * without[0]
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in module.named_buffers())


def test_an_interrupted_mimicking_ends_in_the_same_bits(tmp_path: Path) -> None:
    graph = traced()
    whole, keep = pruned(graph)
    features = find_features(graph, keep, whole)
    resumed, path = copy.deepcopy(whole), tmp_path / "run"
    settings = replace(FEW, epochs=4)
    finetune(whole, graph.module, Photographs(), settings, features=features)

    class Stop:
        def start(self, total: int, label: str) -> None: ...
        def close(self) -> None: ...
        def advance(self, n: int = 1, text: str = "") -> None:
            if text.startswith("epoch 2"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(
            copy.deepcopy(resumed),
            graph.module,
            Photographs(),
            settings,
            features=features,
            checkpoint=path,
            progress=Stop(),
        )
    history = finetune(resumed, graph.module, Photographs(), settings, features=features, checkpoint=path)
    assert history.resumed == 1
    assert same(whole, resumed)


def test_the_rate_falls_to_a_tenth_at_two_fifths() -> None:
    settings = FinetuneSettings(lr=1.0, warmup=0.1, schedule="step")
    assert [learning_rate(settings, step, 10) for step in range(10)] == pytest.approx([1.0] * 4 + [0.1] * 6)
