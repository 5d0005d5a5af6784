from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.errors import InputError
from deploypruner.train.batches import Batch
from deploypruner.train.batchnorm import reestimate_batchnorm
from tests.recover_models import Images, Net, net, same

pytestmark = pytest.mark.slow


def test_statistics_of_two_batches_by_hand() -> None:
    bn = nn.BatchNorm1d(1)
    batches = [((torch.tensor([[0.0], [2.0]]),), None), ((torch.tensor([[4.0], [10.0]]),), None)]
    assert reestimate_batchnorm(bn, batches, max_batches=8) == 1
    assert bn.running_mean is not None
    assert bn.running_var is not None
    assert bn.running_mean.item() == pytest.approx((1 + 7) / 2)
    assert bn.running_var.item() == pytest.approx((2 + 18) / 2)  # unbiased: divided by one
    assert bn.num_batches_tracked == 2


def cumulative(model: Net, batches: list[Batch]) -> Net:
    """PyTorch's own cumulative average, dropout off."""
    reference = copy.deepcopy(model).eval()
    reference.bn.momentum = None
    reference.bn.reset_running_stats()
    reference.bn.train()
    with torch.no_grad():
        for inputs, _ in batches:
            reference(*inputs)
    return reference


@pytest.mark.parametrize("momentum", [0.1, 0.003, 1.0, None])
def test_statistics_equal_the_cumulative_average_whatever_the_momentum(momentum: float | None) -> None:
    model = net()
    model.bn.momentum = momentum
    batches = list(Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False))
    reference = cumulative(model, batches)
    assert reestimate_batchnorm(model, batches, max_batches=4) == 1
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=2e-6, atol=2e-6)


def traced(model: nn.Module, x: Tensor) -> nn.Module:
    """The exported training graph, whose batch norm is a function call and not a module."""
    batch = torch.export.Dim("batch", min=2, max=4096)
    return torch.export.export(model.train(), (x,), dynamic_shapes=({0: batch},)).module()


def test_batch_norm_inside_an_exported_graph_is_measured_alike() -> None:
    model = net()
    model.bn.momentum = 0.03
    batches = list(Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False))
    reference = cumulative(model, batches)
    graph = traced(model, batches[0][0][0])
    # An exported module refuses train(); the pruned module of this package has its own.
    graph.train = lambda mode=True: graph  # type: ignore[method-assign, assignment]
    assert not any(isinstance(part, nn.BatchNorm2d) for part in graph.modules())
    assert reestimate_batchnorm(graph, batches, max_batches=4) == 1
    for name in ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked"):
        torch.testing.assert_close(
            graph.state_dict()[name], reference.state_dict()[name], rtol=2e-6, atol=2e-6, msg=name
        )


def test_measuring_statistics_leaves_parameters_mode_and_random_state_alone() -> None:
    model = net().eval()
    model.drop.train()
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    data = Images().epoch(batch_size=10, seed=1, shuffle=True, augment=False)
    reestimate_batchnorm(model, data, max_batches=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in model.modules()] == [part.training for part in before.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before.parameters(), strict=True))
    assert model.bn.num_batches_tracked == 2


class Fixed(nn.Module):
    """Uses its running statistics but never updates them."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.tensor([3.0]))
        self.register_buffer("running_var", torch.tensor([4.0]))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, training=False)


def test_frozen_statistics_are_kept_and_used() -> None:
    model = nn.Sequential(Fixed(), nn.BatchNorm1d(1))
    batch = ((torch.tensor([[1.0], [5.0]]),), None)  # the frozen layer makes -1 and 1 of it
    assert reestimate_batchnorm(model, [batch], max_batches=1) == 1
    assert model[0].running_mean.item() == 3.0
    assert model[1].running_mean.item() == pytest.approx(0.0, abs=1e-5)
    assert model[1].running_var.item() == pytest.approx(2.0, rel=1e-5)


def test_a_network_whose_statistics_are_all_frozen_changes_nothing() -> None:
    model = Fixed()
    assert reestimate_batchnorm(model, [((torch.ones(2, 1),), None)], max_batches=1) == 0
    assert (model.running_mean.item(), model.running_var.item()) == (3.0, 4.0)


def test_a_network_without_batch_norm_changes_nothing() -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model)
    assert reestimate_batchnorm(model, [((torch.ones(2, 2),), None)], max_batches=1) == 0
    assert same(model, before)


@pytest.mark.parametrize("batches", [[], [((torch.full((2, 1), math.nan),), None)]])
def test_statistics_that_cannot_be_measured_are_an_error_and_keep_the_old(batches: list[Batch]) -> None:
    bn = nn.BatchNorm1d(1)
    before = copy.deepcopy(bn)
    with pytest.raises(InputError, match=r"no batch|'running_mean' is not finite"):
        reestimate_batchnorm(bn, batches, max_batches=1)
    assert same(bn, before)
