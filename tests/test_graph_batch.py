"""Opening a marked batch: what torch.export would find out with symbols, found by arithmetic and proved on runs."""

from __future__ import annotations

import operator
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.graph.capture.dynamic_batch import Uncertain, _looks_like, marker, scaled
from deploypruner.graph.capture.from_model import _Capturing, capture
from deploypruner.graph.nodes import shape_of
from tests.nets import NETS, make

pytestmark = pytest.mark.slow


class Sizes(nn.Module):
    """The batch in every place a size can be."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.token, self.o = nn.Linear(12, 16), nn.Parameter(torch.randn(1, 1, 16)), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        h = torch.cat([self.token.expand(b, -1, -1), self.a(x)], 1)
        heads = h.view(b * (n + 1), 4, 4).transpose(1, 2).reshape(b, n + 1, 16)
        zeros, ones = torch.zeros(b, 1, 16), x.new_ones(b, n + 1, 1)
        last = heads[torch.arange(b), torch.full((b,), n)]
        windows = h.repeat(2, 1, 1).view(2 * b, n + 1, 16)[:b]
        first, _ = torch.split(torch.cat([windows, h]), [b, b])
        return self.o(heads + zeros + ones * last[:, None] + first)


class ByBatch(nn.Module):
    """Divides by the batch: a number, and no size."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * x.sum(0) / x.shape[0]).relu()


class Branch(nn.Module):
    """Does something else with many samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 50 else x * 3


class Few(nn.Module):
    """Does something else already with five samples."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] >= 5 else x * 3


class Squeezing(nn.Module):
    """Loses a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())


def ways(net: nn.Module, *inputs: Tensor) -> tuple[list[str], object]:
    """Which ways were tried, and the capture."""
    tried = []
    originals = {way: getattr(_Capturing, way) for way in ("marked", "symbolic", "static")}

    def noting(way):
        def run(self):
            tried.append(way)
            return originals[way](self)

        return run

    with mock.patch.multiple(_Capturing, **{way: noting(way) for way in originals}):
        # A method compares equal to itself, which is how `run` knows the last way.
        return tried, capture(net.eval(), inputs)


@pytest.mark.parametrize("name", NETS)
def test_the_fast_way_and_torchs_symbols_record_the_same_graph(name):
    net, x = make(name)
    capturing = _Capturing(net, (x,))
    fast, slow = capturing.marked()[0], capturing.symbolic()[0]

    def calls(module):
        """All but arithmetic on sizes, and slices of everything, which only a symbol cannot recognise."""
        skipped = (operator.mul, operator.add, operator.floordiv, torch.ops.aten.sym_size.int)
        found = [n for n in module.graph.nodes if n.op == "call_function" and n.target not in skipped]
        whole = torch.ops.aten.slice.Tensor
        return [n for n in found if n.target is not whole or shape_of(n) != shape_of(n.args[0])]

    assert [n.target for n in calls(fast)] == [n.target for n in calls(slow)]
    for mine, theirs in zip(calls(fast), calls(slow), strict=True):
        if isinstance(mine.meta["val"], Tensor):
            assert shape_of(mine) == shape_of(theirs)


def test_sizes_in_every_place_become_dynamic():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Sizes().eval(), torch.randn(4, 7, 12)
    tried, captured = ways(net, x)
    assert tried == ["marked"]
    assert captured.dynamic_batch
    for size in (1, 2, 3, 4):
        torch.testing.assert_close(captured.module(x[:size]), net(x[:size]))
    assert all(
        isinstance(n.meta["val"], int) for n in captured.module.graph.nodes if n.target is torch.ops.aten.sym_size.int
    )


def test_a_number_made_from_the_batch_is_left_to_torchs_symbols():
    x = torch.randn(3, 4)
    tried, captured = ways(ByBatch(), x)
    assert tried == ["marked", "symbolic"]
    assert captured.dynamic_batch
    torch.testing.assert_close(captured.module(x), ByBatch()(x))


@pytest.mark.parametrize("net", [Branch(), Few()])
def test_a_model_that_looks_at_the_batch_is_never_traced_into_the_wrong_branch(net):
    x = torch.randn(2, 4)
    tried, captured = ways(net, x)
    assert len(tried) > 1
    torch.testing.assert_close(captured.module(x), 3 * x)
    if not captured.dynamic_batch:
        assert captured.remarks[0].startswith("the batch size is fixed at the example's: ")


def test_a_model_that_squeezes_one_sample_away_is_traced_with_two():
    net = Squeezing().eval()
    tried, captured = ways(net, torch.randn(1, 3, 8, 8))
    assert captured.dynamic_batch
    assert tried == ["marked"] or captured.check.passed
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(captured.module(x), net(x))


def test_the_marker_divides_no_size_of_the_model():
    net = nn.Sequential(nn.Linear(101, 206), nn.Linear(206, 107 * 3))
    assert marker(net, (torch.zeros(2, 101),)) == 109
    assert marker(nn.Linear(3, 3), (torch.zeros(2, 3),)) == 101


@pytest.mark.parametrize("value", [101, 303, 1 / 101, 101**-0.5, 2 / 101, 101.0, -202])
def test_numbers_that_could_be_the_batch(value):
    assert _looks_like(value, 101)


@pytest.mark.parametrize("value", [0, 1, 1e-5, 1e-12, 0.5, 2.0, 768**-0.5, 0.1, -1e30, float("inf"), 100, 6.0])
def test_numbers_that_could_not(value):
    assert not _looks_like(value, 101)


def test_scaled_by_hand():
    assert [scaled(n, 101, 2) for n in (0, 1, 7, 101, 404)] == [0, 1, 7, 2, 8]


def test_what_was_uncertain_says_where():
    with pytest.raises(Uncertain, match="div is given 101"):
        _Capturing(ByBatch().eval(), (torch.randn(3, 4),)).marked()
