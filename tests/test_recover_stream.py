"""The last layer of a branch is solved towards the stream behind its addition; numpy's least squares agrees."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deploypruner as dp
from deploypruner.graph import Graph
from deploypruner.train.reconstruct import reconstruct
from tests.test_recover_reconstruct import SMALL, batches, drawn, images

pytestmark = pytest.mark.slow

ALL = 10**6  # positions: every one


def lively(model: nn.Module, seed: int = 5) -> nn.Module:
    """Batch norms with statistics and parameters that matter."""
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            for tensor, low in ((part.weight.data, 0.5), (part.running_var, 0.5), (part.running_mean, -0.5)):
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + low)
    return model


class Block(nn.Module):
    """Two branches after a stem, and a head that reads everything."""

    def __init__(self, relu: bool = False, norm: bool = True, bias: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        for name in ("a", "b"):
            last = [nn.Conv2d(10, 6, 3, padding=1, bias=bias), *([nn.BatchNorm2d(6)] if norm else [])]
            self.add_module(name, nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(), *last))
        self.act = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.act(x + self.a(x))
        x = self.act(x + self.b(x))
        return self.head(x)


def traced(model: nn.Module) -> Graph:
    return dp.trace(lively(model).eval(), (images(2),))


def value(graph: Graph, module: nn.Module, name: str, x: Tensor) -> Tensor:
    """What the node of this name gives."""
    interpreter = torch.fx.Interpreter(module, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(x)
    return interpreter.env[next(n for n in module.graph.nodes if n.name == name)]


def inner(graph: Graph, layer: str) -> str:
    return next(g.id for g in graph.groups if g.id.startswith(f"{layer}.0.weight"))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("dropped", [True, False])
def test_the_stream_is_reached_as_numpys_least_squares_reaches_it(norm: bool, dropped: bool) -> None:
    x = images()
    graph = traced(drawn(lambda: Block(norm=norm)))
    keep = {inner(graph, "a"): np.array([0, 2, 3, 7])}
    if dropped:
        keep["b"] = np.array([], np.int64)
    module = graph.cut(graph.removed(keep)).eval()
    start = copy.deepcopy(module)
    reconstruct(graph, keep, module, batches(x), ridge=SMALL, positions=ALL, gains=False)

    adds = [n.name for n in graph.module.graph.nodes if "add" in n.name]
    target = value(graph, graph.module, adds[1 if dropped else 0], x)
    with torch.no_grad():
        stem = start.get_submodule("stem")  # nothing was cut before it: the solution changes nothing
        shortcut = F.conv2d(x, stem.weight, stem.bias, padding=1)
        first = module.get_submodule("a.0")
        hidden = F.relu(F.conv2d(shortcut, first.weight, first.bias, padding=1))
        rows = F.unfold(hidden, 3, padding=1).mT.reshape(-1, 36).double().numpy()
    if norm:
        rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)  # the batch norm takes in a constant
    wanted = (target - shortcut).flatten(2).mT.reshape(-1, 6).double().numpy()
    solution, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    best = rows @ solution
    reached = value(graph, module, adds[0], x) - shortcut
    np.testing.assert_allclose(reached.flatten(2).mT.reshape(-1, 6).numpy(), best, atol=2e-4)


def relu_block() -> nn.Module:
    return Block(relu=True)


class Scaled(nn.Module):
    """A transformer-like block: layer scale, and tokens that are folded into the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 4)
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)
        self.scale = nn.Parameter(torch.linspace(0.1, 0.5, 8))
        self.conv_up, self.conv_down = nn.Linear(8, 12), nn.Linear(12, 8)
        self.gate = nn.Parameter(torch.linspace(-0.5, 0.5, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        y = self.conv_down(F.gelu(self.conv_up(x.permute(0, 2, 3, 1))))
        x = x + (y * self.gate).permute(0, 3, 1, 2)
        x = x.flatten(2).transpose(1, 2)
        n, t, c = x.shape
        y = self.down(F.gelu(self.up(self.norm(x)).view(n * t, 12))).view(n, t, c)
        x = x + F.dropout(self.scale * y, 0.1, self.training)
        return self.head(x.mean(1))


class Projected(nn.Module):
    """A transition: the shortcut has a layer of its own, which comes after the branch in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.a = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(), nn.Conv2d(10, 8, 3, padding=1, bias=False))
        self.bn, self.project = nn.BatchNorm2d(8), nn.Conv2d(6, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.bn(self.a(x))
        return self.head(F.relu(y + self.project(x)))


@pytest.mark.parametrize("make", [Block, relu_block, Scaled, Projected])
@pytest.mark.parametrize("drop", [False, True])
def test_the_stream_is_never_further_off_than_with_each_layers_own_target(
    make: Callable[[], nn.Module], drop: bool
) -> None:
    x = images()
    graph = traced(drawn(make))
    keep = {g.id: np.arange(0, g.size, 2) if g.size > 8 else np.arange(g.size) for g in graph.groups}
    if drop:
        keep |= {branch.id: np.array([], np.int64) for branch in graph.branches[1:]}
    off = {}
    for streams in (False, True):
        module = graph.cut(graph.removed(keep)).eval()
        reconstruct(graph, keep, module, batches(x), ridge=SMALL, positions=ALL, streams=streams, gains=False)
        adds = [n.name for n in graph.module.graph.nodes if "add" in n.name]
        here = [name for name in adds if any(n.name == name for n in module.graph.nodes)]
        # Between the last sum that is left and the last dense one only dropped branches lie; of Scaled, views too.
        reached = here[-1] if make is Scaled else adds[-1]
        wanted, got = value(graph, graph.module, reached, x), value(graph, module, here[-1], x)
        if make in (relu_block, Projected):
            wanted, got = wanted.relu(), got.relu()
        off[streams] = float((wanted - got).square().sum() / wanted.square().sum())
    assert off[True] <= off[False] * (1 + 1e-5)
    assert drop is False or make in (Scaled, Projected) or off[True] < 0.9 * off[False]


def test_layers_without_a_stream_are_solved_as_before() -> None:
    x = images()
    graph = traced(drawn(Block))
    keep = {inner(graph, "a"): np.array([0, 2, 3, 7])}
    old, new = (graph.cut(graph.removed(keep)).eval() for _ in range(2))
    before = reconstruct(graph, keep, old, batches(x), streams=False)
    after = reconstruct(graph, keep, new, batches(x))
    assert before.errors["a.0.weight"] == after.errors["a.0.weight"]
    assert before.errors["stem.weight"] == after.errors["stem.weight"]
    assert torch.equal(old.get_parameter("a.0.weight"), new.get_parameter("a.0.weight"))
    assert not torch.equal(old.get_parameter("a.2.weight"), new.get_parameter("a.2.weight"))


def test_a_channel_whose_batch_norm_scale_is_zero_keeps_its_weights() -> None:
    x = images()
    model = lively(drawn(Block))
    with torch.no_grad():
        model.a[3].weight[2] = 0
    graph = dp.trace(model.eval(), (x[:2],))
    keep = {inner(graph, "a"): np.array([0, 2, 3, 7]), "b": np.array([], np.int64)}
    module = graph.cut(graph.removed(keep)).eval()
    before = module.get_parameter("a.2.weight").detach().clone()
    reconstruct(graph, keep, module, batches(x))
    after = module.get_parameter("a.2.weight").detach()
    assert torch.equal(before[2], after[2])
    assert not torch.equal(before[1], after[1])
    assert bool(torch.isfinite(after).all())
