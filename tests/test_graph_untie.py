"""q, k and v of one layer: cut before the reshape, bit-equal, and with columns of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import trace
from deploypruner.graph.capture.from_model import capture
from deploypruner.graph.capture.split_qkv import untie
from deploypruner.graph.execute.module import TracedModule
from tests.test_graph_laws import random_plan

pytestmark = pytest.mark.slow


class Projected(nn.Module):
    """4 heads of 6 columns from one projection; sub-classes take it apart in different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.o, self.head = nn.Linear(24, 72), nn.Linear(24, 24), nn.Linear(24, 5)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("a sub-class takes the projection apart")

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(self.qkv(x))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.o(y.transpose(1, 2).flatten(2)))


class Unbound(Projected):
    """timm's vision transformers."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = x.reshape(b, n, 3, 4, -1).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


class Selected(Projected):
    """Swin."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        x = x.view(b, n, 3, 4, 6).permute(2, 0, 3, 1, 4)
        return x[0], x[1], x[-1]


class HeadsFirst(Projected):
    """Bloom: (heads, 3, columns)."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        x = x.view(b, n, 4, 3, 6).transpose(1, 2)
        return x[..., 0, :], x[..., 1, :], x[..., 2, :]


class Moved(Projected):
    """torch's multi-head attention: the axis is unflattened, moved to the front and made contiguous."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x.unflatten(-1, (3, 24)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
        b, n, _ = x[0].shape
        q, k, v = (t.view(b, n, 4, 6).transpose(1, 2) for t in (x[0], x[1], x[2]))
        return q, k, v


class Rearranged(Projected):
    """einops: another reshape lies between the split and the selection."""

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        x = x.reshape(b, n, 3, 2, 2, 6).permute(2, 0, 3, 4, 1, 5).reshape(3, b, 4, n, 6)
        return x[0], x[1], x[2]


NETS = [Unbound, Selected, HeadsFirst, Moved, Rearranged]


def made(net: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return net().eval(), torch.randn(2, 7, 24)


def captured(net: nn.Module, x: Tensor) -> TracedModule:
    return capture(net, (x,)).module


@pytest.mark.parametrize("net", NETS)
def test_taking_parts_apart_changes_no_bit_at_any_batch_size(net):
    model, x = made(net)
    module = captured(model, x)
    assert untie(module) == 1
    for batch in (x, x[:1], torch.cat([x, x, x])):
        assert torch.equal(module(batch), model(batch))


@pytest.mark.parametrize("net", NETS)
def test_gradients_pass_as_before(net):
    model, x = made(net)
    module = captured(model, x)
    untie(module)
    for reference in (model, module):
        reference.zero_grad()
        reference(x).square().sum().backward()
    theirs = dict(module.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(theirs[name].grad, parameter.grad)


@pytest.mark.parametrize("net", NETS)
def test_columns_of_v_are_free_from_those_of_q_and_k(net):
    model, x = made(net)
    graph = trace(model, x)
    columns = [g for g in graph.groups if g.size == 6]
    rows = [sorted({m.parameter for m in g.members}) for g in columns]
    assert rows == [["qkv.bias", "qkv.weight"], ["o.weight", "qkv.bias", "qkv.weight"]]
    # q and k: column j of each of the 4 heads, in q and in k.
    assert [m.index.shape for m in columns[0].members] == [(6, 8), (6, 8)]


@pytest.mark.parametrize("net", NETS)
def test_masked_equals_removed_where_v_loses_other_columns_than_q(net):
    model, x = made(net)
    graph = trace(model, x)
    for seed in range(3):
        module, checks = remove_and_prove(graph, random_plan(graph, seed))
        assert all(check.passed for check in checks), checks
        assert module(torch.cat([x, x[:1]])).shape == (3, 7, 5)


class Pooled(nn.Module):
    """The parts are added up as an axis, so they are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(24, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).unflatten(-1, (3, 8))
        return self.o(x[..., 0, :] + x.sum(-2))


class Written(nn.Module):
    """One part is written through the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(24, 24), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).unflatten(-1, (3, 8))
        x.mul_(2.0)
        return self.o(x[..., 0, :] + x[..., 1, :])


class Batched(nn.Module):
    """What is split is the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(torch.cat([x, x, x])).unflatten(0, (3, -1))
        return x[0] + x[1] * x[2]


@pytest.mark.parametrize("net", [Pooled, Written, Batched])
def test_an_axis_that_is_used_as_one_stays(net):
    model, x = made(net)
    module = captured(model, x)
    assert untie(module) == 0
    for batch in (x, torch.cat([x, x, x])):
        assert torch.equal(module(batch), model(batch))


def test_unused_parts_go_away():
    class First(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(24, 24), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.a(x).unflatten(-1, (3, 8)).select(-2, 1))

    model, x = made(First)
    graph = trace(model, x)
    inner = next(g for g in graph.groups if any(m.parameter == "o.weight" for m in g.members))
    rows = next(m.index for m in inner.members if m.parameter == "a.weight")
    assert np.array_equal(rows.reshape(-1), np.arange(8, 16))
