"""Removing channels with the rest solved anew: the closed form agrees with solving from nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.graph import trace
from deploypruner.train import readers
from deploypruner.train.obs import Reader, eliminate
from deploypruner.train.readers import order_by_readers

pytestmark = pytest.mark.slow


def layer(channels: int = 5, patch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    """Correlated inputs of a convolution with a bias column, its weights, and the rows of each channel."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(channels * patch, channels * patch, generator=generator, dtype=torch.float64)
    x = torch.randn(200, channels * patch, generator=generator, dtype=torch.float64) @ mixed + 0.5
    x = torch.cat([x, torch.ones(200, 1, dtype=torch.float64)], dim=1)
    w = torch.randn(channels * patch + 1, 4, generator=generator, dtype=torch.float64)
    return x, w, torch.arange(channels * patch).view(channels, patch)


def solved(x: Tensor, w: Tensor, gone: list[int], channels: Tensor) -> float:
    """|Y - X W'|^2 with some channels gone, by numpy."""
    rows = np.setdiff1d(np.arange(x.shape[1]), np.concatenate([channels[c].numpy() for c in gone]))
    y, kept = (x @ w).numpy(), x.numpy()[:, rows]
    solution, *_ = np.linalg.lstsq(kept, y, rcond=None)
    return float(np.square(y - kept @ solution).sum())


def test_errors_and_order_are_those_of_solving_every_choice_anew() -> None:
    x, w, channels = layer()
    found = eliminate([Reader(x.mT @ x, w, channels)], ridge=1e-12)
    gone, size = list[int](), float((x @ w).square().sum())
    for step, channel in enumerate(found.order.tolist()):
        costs = {c: solved(x, w, [*gone, c], channels) for c in range(len(channels)) if c not in gone}
        assert channel == min(costs, key=costs.__getitem__)
        assert found.errors[step + 1] * size == pytest.approx(costs[channel], rel=1e-6)
        gone.append(channel)
    assert found.errors[0] == 0


def test_a_channel_that_another_repeats_goes_first_and_costs_nothing() -> None:
    x, w, channels = layer()
    x[:, channels[3]] = 2 * x[:, channels[1]]
    found = eliminate([Reader(x.mT @ x, w, channels)])
    assert found.order[0] in (1, 3)
    assert found.errors[1] < 1e-3 * found.errors[2]


def test_sums_that_are_not_finite_are_refused() -> None:
    x, w, channels = layer()
    with pytest.raises(InputError, match="not finite"):
        eliminate([Reader(x.mT @ x * torch.nan, w, channels)])


def test_what_one_reader_can_spare_and_another_cannot_stays() -> None:
    """Channel 2 repeats channel 0 for both readers; the second reads nothing but channel 1, large."""
    x, w, channels = layer(channels=4)
    x[:, channels[2]] = x[:, channels[0]]
    only = torch.zeros_like(w)
    only[channels[1]] = 100.0
    found = eliminate([Reader(x.mT @ x, w, channels), Reader(x.mT @ x, only, channels)])
    assert found.order[0] in (0, 2)
    assert found.order[-1] == 1
    alone = [eliminate([Reader(x.mT @ x, each, channels)]) for each in (w, only)]
    assert found.errors[-1] == pytest.approx(sum(each.errors[-1] for each in alone), rel=1e-3)


def test_several_at_a_time_lose_what_solving_without_all_of_them_loses() -> None:
    x, w, channels = layer(channels=9, patch=2)
    found = eliminate([Reader(x.mT @ x, w, channels)], steps=3, ridge=1e-12)
    size = float((x @ w).square().sum())
    assert found.gone.tolist() == [0, 3, 6, 9]
    for gone, error in zip(found.gone[1:].tolist(), found.errors[1:].tolist(), strict=True):
        assert error * size == pytest.approx(solved(x, w, found.order[:gone].tolist(), channels), rel=1e-6)


# ---------------------------------------------------------------------- whole networks


def test_channels_that_nobody_misses_go_first_in_every_group() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 25, 4)),
    ).eval()
    with torch.no_grad():
        net[2].weight[:, 5] = 0  # nobody reads it, however large it is
        net[0].weight[5] *= 100
        net[2].weight[4], net[2].bias[4] = net[2].weight[1], net[2].bias[1]  # one of the two is enough
    graph = trace(net, torch.randn(2, 3, 5, 5))
    order = {g.id: np.arange(g.size) for g in graph.groups}
    data = [((torch.randn(64, 3, 5, 5),), None) for _ in range(4)]
    found = order_by_readers(graph, order, data, positions=9)
    assert found["0.weight:0"][-1] == 5
    assert found["2.weight:0"][-1] in (1, 4)
    assert all(sorted(found[g].tolist()) == order[g].tolist() for g in order)
    with pytest.raises(InputError, match="no samples"):
        order_by_readers(graph, order, [])


def test_sums_that_do_not_fit_into_the_memory_are_made_in_portions(monkeypatch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    graph = trace(net, torch.randn(2, 5))
    order = {g.id: np.arange(g.size) for g in graph.groups}
    data = [((torch.randn(64, 5),), None)]
    at_once = order_by_readers(graph, order, data)
    monkeypatch.setattr(readers, "_MEMORY", 0.0)
    runs, original = list[int](), readers._sums
    monkeypatch.setattr(readers, "_sums", lambda *given: runs.append(1) or original(*given))
    assert all(np.array_equal(at_once[g], kept) for g, kept in order_by_readers(graph, order, data).items())
    assert len(runs) == 2


def test_fewer_samples_than_inputs_are_no_obstacle() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 12, generator=generator)  # float32, rank 5: no inverse without a ridge
    reader = Reader(
        (x.mT @ x).double() - 1e-4 * torch.eye(12, dtype=torch.float64), torch.randn(12, 3), torch.arange(12)[:, None]
    )
    found = eliminate([reader], ridge=1e-12)
    assert sorted(found.order.tolist()) == list(range(12))
    assert np.isfinite(found.errors).all()
