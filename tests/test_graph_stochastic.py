"""Stochastic depth survives the export and trains as the user's own layers do."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from deploypruner.channels.remove import remove_and_prove
from deploypruner.export.program import capture as program_of
from deploypruner.export.program import with_reshapes
from deploypruner.graph import trace
from deploypruner.graph.capture.stochastic_depth import StochasticDepth, keep_stochastic_depth
from tests.test_graph_laws import random_plan

pytestmark = pytest.mark.slow


class DropPath(nn.Module):
    """Drops samples, or a whole batch; with `scaled=False` the survivors are not scaled up."""

    def __init__(self, p: float, *, batch: bool = False, scaled: bool = True) -> None:
        super().__init__()
        self.p, self.batch, self.scaled = p, batch, scaled

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        shape = [1 if self.batch else x.shape[0]] + [1] * (x.ndim - 1)
        mask = x.new_empty(shape).bernoulli_(1 - self.p)
        return x * (mask / (1 - self.p) if self.scaled else mask)


class Noise(nn.Module):
    """Not stochastic depth: every element is scaled on its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand_like(x) if self.training else x


class Net(nn.Module):
    def __init__(self, *drops: nn.Module) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in drops)
        self.drops, self.head = nn.ModuleList(drops), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for layer, drop in zip(self.layers, self.drops, strict=True):
            x = x + drop(layer(x).relu())
        return self.head(x.mean((2, 3)))


def kept(layer: nn.Module) -> nn.Module:
    holder = nn.Sequential(layer).eval()
    keep_stochastic_depth(holder)
    return holder[0]


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("batch", [False, True])
def test_the_rate_is_read_off_the_scale(p, batch):
    found = kept(DropPath(p, batch=batch))
    assert isinstance(found, StochasticDepth)
    assert found.p == pytest.approx(p, abs=1e-9)
    assert found.per_sample != batch


@pytest.mark.parametrize(
    "layer", [nn.Identity(), nn.Dropout(0.5), nn.Dropout2d(0.5), nn.ReLU(), nn.Linear(2, 2), DropPath(0.0), Noise()]
)
def test_everything_else_stays_what_it_is(layer):
    assert kept(layer) is layer


def test_looking_for_it_draws_no_random_number_of_the_users():
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    kept(DropPath(0.5))
    assert torch.equal(torch.rand(4), wanted)


def test_equal_seeds_drop_equal_samples():
    net = Net(DropPath(0.3), DropPath(0.4, batch=True), DropPath(0.6)).eval()
    x = torch.randn(6, 3, 8, 8)
    module = trace(net, x).module
    for mode in (True, False, True):
        net.train(mode)
        module.train(mode)
        for seed in range(4):
            outputs = []
            for model in (net, module):
                torch.manual_seed(seed)
                outputs.append(model(x))
            torch.testing.assert_close(outputs[1], outputs[0])


def test_a_pruned_model_drops_samples_at_the_same_rate():
    net = Net(DropPath(0.25)).eval()
    for layer in (net.stem, net.norm):
        layer.requires_grad_(False)
    graph = trace(net, torch.randn(2, 3, 8, 8))
    module, checks = remove_and_prove(graph, random_plan(graph, 0))
    assert all(check.passed for check in checks)
    module.train()
    x = torch.randn(1, 3, 8, 8).expand(4000, -1, -1, -1)
    torch.manual_seed(0)
    with torch.no_grad():
        outputs = module(x)
    distinct, counts = torch.unique(outputs.round(decimals=3), dim=0, return_counts=True)
    assert len(distinct) == 2
    assert counts.min() / 4000 == pytest.approx(0.25, abs=0.04)


def test_what_a_switch_cannot_keep_is_in_a_second_graph():
    net, x = Net(DropPath(0.5, scaled=False)).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    assert graph.remarks == ()
    torch.manual_seed(1)
    wanted = copy.deepcopy(net).train()(x)
    torch.manual_seed(1)
    torch.testing.assert_close(graph.cut(graph.removed({})).train()(x), wanted)


def test_the_users_model_keeps_its_own_layers():
    net = Net(DropPath(0.5)).eval()
    before = copy.deepcopy(net)
    trace(net, torch.randn(2, 3, 8, 8))
    assert isinstance(net.drops[0], DropPath)
    assert not any(m.training for m in net.modules())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), before.parameters(), strict=True))


def test_a_second_trace_keeps_it_and_inference_formats_do_without():
    net = Net(DropPath(0.5), DropPath(0.5, batch=True)).eval()
    x = torch.randn(2, 3, 8, 8)
    module = trace(trace(net, x).module, x).module
    assert sum("feature_dropout" in str(node.target) for node in module.graph.nodes) == 2
    program = with_reshapes(program_of(module, (x,), dynamic_batch=True))
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("dropout" in name or "squeeze" in name for name in names)
    torch.testing.assert_close(program.module()(x), net(x))
