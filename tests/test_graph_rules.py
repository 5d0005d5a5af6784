"""Rules that have been wrong once, and what happens where one fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import trace
from deploypruner.graph.labels.rules import RULES
from deploypruner.graph.labels.tracing import Tracing
from tests.test_graph_laws import random_plan


class Lambda(nn.Module):
    """Two linear layers with a function of (hidden, parameter) between them."""

    def __init__(self, function, *shape: int) -> None:
        super().__init__()
        self.a, self.b, self.p = nn.Linear(6, 8), nn.Linear(8, 5), nn.Parameter(torch.randn(shape or (1,)))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x), self.p))


X = torch.arange(2 * 4 * 6).reshape(2, 4, 6) / 10 - 2


def proved(net: nn.Module):
    """The graph of a net whose random plans pass the proof."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        graph = trace(net.eval(), X)
    for seed in range(2):
        _, checks = remove_and_prove(graph, random_plan(graph, seed))
        assert all(check.passed for check in checks), checks
    return graph


def test_a_rule_that_fails_freezes_what_it_touches_and_says_so(monkeypatch):
    def broken(tracing, node, args):
        raise IndexError("off by one")

    monkeypatch.setattr(Tracing, "strict", False)
    monkeypatch.setattr("deploypruner.graph.labels.rules._FOUND", {torch.ops.aten.cumsum.default: broken})
    graph = trace(Lambda(lambda x, p: x.cumsum(1)).eval(), X)
    assert graph.groups == ()
    reason = "the rule for aten.cumsum.default does not apply (IndexError)"
    assert {f.reason for f in graph.frozen} >= {reason}
    assert any(remark.startswith(reason) for remark in graph.remarks)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [
        ("...i,ij->...j", (8, 8)),
        ("bt...,...j->bt...j", (8, 8)),
        ("...ti,...it->...ti", (8, 4)),
        ("...,...", (4, 8)),
        ("abi,ij", (8, 8)),
    ],
)
def test_einsum_equations_shrink_with_their_operands(equation, shape):
    def function(x: Tensor, p: Tensor) -> Tensor:
        y = torch.einsum(equation, x, p)
        return y.sum(2) if y.ndim == 4 else y

    graph = proved(Lambda(function, *shape))
    assert any(m.parameter == "p" for g in graph.groups for m in g.members)


def test_einsum_freezes_a_letter_whose_first_operand_is_fixed():
    """The first operand's axis is the model's input, so the second one's cannot shrink either."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.einsum("btd,bsd->bts", x.softmax(-1), self.a(x)))

    graph = proved(Mixed())
    assert graph.groups == ()


def test_a_window_of_one_leaves_its_axis_free():
    """Class tokens of three scales are mixed by a 1 x 1 convolution over (scales, columns)."""

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ModuleList(nn.Linear(6, 8) for _ in range(3))
            self.mix, self.head = nn.Conv1d(3, 1, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(torch.stack([a(x[:, 0]) for a in self.a], 1)).squeeze(1))

    graph = proved(Scales())
    assert [g.size for g in graph.groups] == [8]
    assert {m.parameter for m in graph.groups[0].members} >= {"a.0.weight", "a.1.weight", "a.2.weight", "head.weight"}


@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 1, "stride": 1, "padding": 1}])
def test_a_wider_window_freezes_its_axis(options):
    class Window(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mix = nn.Linear(6, 8), nn.Conv1d(4, 4, **options)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(self.a(x)).sum(-1)

    assert proved(Window()).groups == ()


class SamePadding(nn.Module):
    """Strided convolutions whose padding follows from the size of their input, as TensorFlow's "same" does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 12, 3, 2), nn.Conv2d(12, 20, 5, 2), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.a, self.b):
            padding = [
                (math.ceil(size / 2) - 1) * 2 + conv.kernel_size[0] - size for size in (x.shape[3], x.shape[2])
            ]
            x = conv(nn.functional.pad(x, [part for p in padding for part in (p // 2, p - p // 2)])).relu()
        return self.head(x.mean((2, 3)))


def test_padding_that_follows_from_the_images_size_does_so_after_pruning():
    net = SamePadding().double().eval()
    graph = trace(net, torch.randn(2, 3, 16, 20, dtype=torch.float64))
    keep = {"a.weight:0": np.arange(0, 12, 2), "b.weight:0": np.arange(1, 20, 3)}
    pruned = graph.cut(graph.removed(keep)).eval()
    for layer, kept in ((net.a, keep["a.weight:0"]), (net.b, keep["b.weight:0"])):
        for tensor in (layer.weight, layer.bias):
            tensor.data[np.setdiff1d(np.arange(len(tensor)), kept)] = 0
    for height, width in ((16, 20), (17, 23), (9, 8)):
        x = torch.randn(2, 3, height, width, dtype=torch.float64)
        assert torch.allclose(pruned(x), net(x), atol=1e-12)


@pytest.mark.parametrize("indexing", ["ij", "xy"])
def test_grids_of_positions_freeze_only_what_they_meet(indexing):
    def function(x: Tensor, p: Tensor) -> Tensor:
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing=indexing)
        return x * p * (rows + 2 * columns).sum(1)[:, None] * torch.eye(4).sum(0)[:, None]

    graph = proved(Lambda(function))
    assert [g.id for g in graph.groups] == ["a.weight:0"]
    assert graph.remarks == ()


def test_every_rule_is_documented():
    assert all(rule.__doc__ for rule in RULES.values())
