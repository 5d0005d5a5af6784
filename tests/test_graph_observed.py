"""Operators without a rule of their own: what they do along each axis is seen by running them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import trace
from deploypruner.graph.labels.tracing import Tracing
from tests.test_graph_laws import random_plan

pytestmark = pytest.mark.slow

Two = Callable[[Tensor, Tensor], Tensor]

PLACES = torch.tensor([3, 1, 2, 0])


class Encoders(nn.Module):
    """Two encoders [N, 3, 6, 6] -> [N, 8, 6, 6], one of them two layers deep, and an operator on both."""

    def __init__(self, both: Two, head: nn.Module | None = None) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 8, 1))
        self.b = nn.Conv2d(3, 8, 1)
        self.both, self.head = both, head or nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.both(self.a(x), self.b(x)))


def gap(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def flat(x: Tensor) -> Tensor:
    return x.flatten(2)


def unpooled(a: Tensor, b: Tensor) -> Tensor:
    values, places = F.max_pool2d(a, 2, return_indices=True)
    return gap(F.max_unpool2d(values * 2, places, 2) * b)


def overwritten(a: Tensor, b: Tensor) -> Tensor:
    a = flat(a).clone()
    a[:, :, PLACES] = flat(b)[:, :, :4]
    return a.mean(2)


def into_classes(a: Tensor, b: Tensor) -> Tensor:
    where = (torch.arange(36) % 4).view(1, 1, 36).expand(a.shape[0], 8, 36)
    return torch.zeros(a.shape[0], 8, 4).scatter_add(2, where, flat(a * b)).amax(2)


# What becomes of both encoders' channels: one group for both, one for each, or none.
TOGETHER: dict[str, Two] = {
    "cosine_similarity": lambda a, b: F.cosine_similarity(a, b, dim=1).flatten(1)[:, :8],
    "pairwise_distance": lambda a, b: F.pairwise_distance(gap(a), gap(b))[:, None].expand(-1, 8),
    "cdist": lambda a, b: torch.cdist(flat(a).mT, flat(b).mT)[:, :8].mean(2),
    "cdist of order 1": lambda a, b: torch.cdist(flat(a).mT, flat(b).mT, p=1.0)[:, :8].mean(2),
    "max_unpool2d": unpooled,
    "rfft2": lambda a, b: gap(torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b), s=a.shape[-2:])),
    "scatter_add": into_classes,
    "index_add": lambda a, b: flat(a).index_add(2, PLACES, flat(b)[:, :, :4]).mean(2),
    "index_copy": lambda a, b: flat(a).index_copy(2, PLACES, flat(b)[:, :, :4]).mean(2),
    "index_put": overwritten,
    "take_along_dim": lambda a, b: torch.take_along_dim(flat(a), flat(b).argsort(2), 2)[:, :, :3].mean(2),
    "tensordot": lambda a, b: torch.tensordot(flat(a), flat(b)[0], dims=([1], [0])).mean(1)[:, :8],
    "complex": lambda a, b: torch.complex(gap(a), gap(b)).abs(),
    "hstack": lambda a, b: torch.hstack((flat(a), flat(b))).mean(2).unflatten(1, (2, 8)).mean(1),
    "broadcast_tensors": lambda a, b: torch.stack(torch.broadcast_tensors(gap(a), gap(b))).sum(0),
}
APART: dict[str, Two] = {
    "grid_sample": lambda a, b: gap(F.grid_sample(a, b[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)),
    "tril of space": lambda a, b: gap(torch.tril(a)),
    "cummax of space": lambda a, b: flat(a).cummax(2).values.mean(2),
    "parts of fft over space": lambda a, b: (lambda z: z.real + z.imag)(torch.fft.fft(flat(a)).conj()).mean(2),
    "rot90": lambda a, b: torch.rot90(a, 1, [2, 3])[:, :, 0].mean(2),
}
MIXED: dict[str, tuple[Two, str]] = {
    "fft": (lambda a, b: torch.fft.fft(gap(a), dim=1).real, "fft_fft depends on every position"),
    "tril": (lambda a, b: torch.tril(flat(a) @ flat(a).mT).sum(2), "tril depends on every position"),
    "index_put": (lambda a, b: gap(a).index_put((torch.arange(2)[:, None], PLACES), torch.ones(1)), "index_put"),
    "local_response_norm": (lambda a, b: gap(F.local_response_norm(a, 3)), "a window"),
    "renorm": (lambda a, b: gap(a).renorm(2, 0, 0.1), "renorm depends on every position"),
}


def traced(both: Two):
    """The graph; a random plan of it passes the proof."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, x = Encoders(both).eval(), torch.randn(2, 3, 6, 6)
    graph = trace(net, x)
    _, checks = remove_and_prove(graph, random_plan(graph, 0))
    assert all(check.passed for check in checks), checks
    return graph


@pytest.mark.parametrize("name", TOGETHER)
def test_both_encoders_shrink_together(name):
    graph = traced(TOGETHER[name])
    members = [{f"{m.parameter}:{m.axis}" for m in group.members} for group in graph.groups]
    assert any({"a.2.weight:0", "b.weight:0"} <= found for found in members), graph.frozen


@pytest.mark.parametrize("name", APART)
def test_the_channels_of_an_operator_on_space_shrink(name):
    assert "a.2.weight:0" in [group.id for group in traced(APART[name]).groups]


@pytest.mark.parametrize("name", MIXED)
def test_channels_that_an_operator_mixes_are_frozen_and_named(name):
    both, reason = MIXED[name]
    graph = traced(both)
    assert "a.2.weight:0" not in [group.id for group in graph.groups]
    frozen = [f.reason for f in graph.frozen if (f.parameter, f.axis) == ("a.2.weight", 0)]
    assert frozen, "neither grouped nor listed"
    assert frozen[0].startswith(reason)


def test_removing_is_zeroing_for_a_cosine_by_hand():
    """Independent of every label: channels 1, 4, 6 of both encoders set to zero in the user's own module."""
    torch.manual_seed(0)
    net = Encoders(lambda a, b: F.cosine_similarity(gap(a), gap(b))[:, None], nn.Identity()).eval()
    graph = trace(net, torch.randn(2, 3, 6, 6))
    group = next(g for g in graph.groups if g.id == "a.2.weight:0")
    small = dp.remove(graph, dp.make_plan(graph, {group.id: [0, 2, 3, 5, 7]}))
    with torch.no_grad():
        for parameter in (*net.a[2].parameters(), *net.b.parameters()):
            parameter[[1, 4, 6]] = 0
    x = torch.randn(3, 3, 6, 6)
    torch.testing.assert_close(small(x), net(x))
    assert small.get_parameter("b.weight").shape[0] == 5


def test_an_operator_of_another_library_is_not_run():
    """Its kernel may crash on sizes it does not check."""
    calls = []

    @torch.library.custom_op("observed::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return x * 2

    twice.register_fake(torch.empty_like)
    graph = trace(Encoders(lambda a, b: gap(twice(a))).eval(), torch.randn(2, 3, 6, 6))
    assert {shape[1] for shape in calls} == {8}, "other images may be tried, other channels may not"
    assert "no rule for observed.twice.default" in {f.reason for f in graph.frozen}


@pytest.mark.parametrize(("kind", "twice"), [("LSTM", True), ("GRU", False), ("RNN", True)])
def test_what_a_recurrent_layer_reads_shrinks_and_its_state_stays(kind, twice):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 8)
            self.r = getattr(nn, kind)(8, 4, batch_first=True, bidirectional=twice, num_layers=1 + twice)
            self.o = nn.Linear(4 * (1 + twice), 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.o(self.r(self.a(x).relu())[0])

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 6, 3)
    graph = trace(net, x)
    assert [group.id for group in graph.groups] == ["a.weight:0"]
    plan = random_plan(graph, 0)
    small, checks = remove_and_prove(graph, plan)
    assert all(check.passed for check in checks), checks
    own = plan.apply_to(net)
    torch.testing.assert_close(own(x), small(x))
    own.train()(x).sum().backward()
    assert own.r.weight_ih_l0.grad is not None, "the kernel still reads the old weights"


def test_strict_tracing_observes_too(monkeypatch):
    monkeypatch.setattr(Tracing, "strict", True)
    assert traced(TOGETHER["cdist"]).groups
