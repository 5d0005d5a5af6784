"""Channels picked by a constant list of indices."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import trace
from tests.test_graph_laws import random_plan

PERMUTATION, CHOICE = [3, 0, 7, 1, 6, 2, 5, 4], [5, 1, 2]


class Picked(nn.Module):
    """A permutation kept in a buffer, used twice, and a choice written as a list."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 1)
        self.register_buffer("order", torch.tensor(PERMUTATION))
        self.o = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x)[:, self.order]).relu()
        x = self.c(x.index_select(1, self.order))
        return self.o(x[:, CHOICE])


def picked() -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Picked().eval(), torch.randn(2, 3, 6, 6)


def test_labels_follow_the_indices():
    graph = trace(*picked())
    rows = {m.parameter: m.index.reshape(-1).tolist() for m in graph.group("a.weight:0").members}
    assert rows["a.weight"] == list(range(8))
    # Channel c of the depthwise convolution reads channel PERMUTATION[c].
    assert [PERMUTATION[c] for c in rows["b.weight"]] == list(range(8))
    chosen = next(g for g in graph.groups if any(m.parameter == "o.weight" for m in g.members))
    rows = {m.parameter: m.index.reshape(-1).tolist() for m in chosen.members}
    assert [CHOICE[i] for i in rows["o.weight"]] == rows["c.weight"]


def test_masked_equals_removed_and_only_the_indices_in_use_remain():
    graph = trace(*picked())
    for seed in range(4):
        module, checks = remove_and_prove(graph, random_plan(graph, seed))
        assert all(check.passed for check in checks), checks
        assert "order" not in dict(module.named_buffers())
    assert all(f.reason in ("model output", "model input") for f in graph.frozen)


def test_a_removed_channel_that_is_not_chosen_shifts_the_choice():
    graph = trace(*picked())
    unchosen = next(g for g in graph.groups if {m.parameter for m in g.members} == {"c.weight", "c.bias"})
    keep = {unchosen.id: np.array([unchosen.size - 1])}
    module = graph.cut(graph.removed(keep))
    with torch.no_grad():
        model, x = picked()
        torch.testing.assert_close(module(x), model(x))


class Units(nn.Module):
    """ShuffleNet: half of the channels pass through a layer, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)
        self.layers = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            p, q = x.chunk(2, 1)
            x = torch.cat([p, layer(q).relu()], 1)
            x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        return self.head(x.mean((2, 3)))


def test_a_network_can_be_pruned_again_and_again():
    """The first round leaves index_selects by constants, which the second one has to look through."""
    module: nn.Module = Units().eval()
    x, rng, left = torch.randn(2, 3, 6, 6), np.random.default_rng(0), 32 + 4 * 16
    for _ in range(3):
        graph = trace(module, x)
        assert all(f.reason in ("model output", "model input") for f in graph.frozen)
        assert sum(g.size for g in graph.groups) >= left - 4
        keep = {g.id: np.sort(rng.choice(g.size, g.size - g.size // 4, replace=False)) for g in graph.groups}
        left = sum(len(channels) for channels in keep.values())
        smaller = graph.cut(graph.removed(keep))
        assert sum(p.numel() for p in smaller.parameters()) == graph.cost(keep).params
        module = smaller
    assert any("_kept" in name for name, _ in module.named_buffers())


class Table(nn.Module):
    """Relative positions: one table entry stands in many places."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 6))
        self.register_buffer("where", (torch.arange(4)[:, None] - torch.arange(4)[None] + 3).reshape(-1))
        self.a, self.b = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        bias = self.table[self.where].view(4, 4, 6).mean(0)
        return self.b((self.a(x) + bias).relu())


def test_a_table_keeps_its_positions_and_shrinks_in_its_columns():
    graph = trace(Table().eval(), torch.randn(2, 4, 5))
    group = graph.group("table:1")
    assert {(m.parameter, m.axis) for m in group.members} >= {("table", 1), ("a.weight", 0), ("b.weight", 1)}
    assert not any(m.parameter == "table" and m.axis == 0 for g in graph.groups for m in g.members)
