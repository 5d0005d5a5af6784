"""Statistics become those of the data, and the network computes what it computed."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.errors import InputError
from deploypruner.train.batches import Batch
from deploypruner.train.batchnorm import reestimate_batchnorm
from deploypruner.train.renormalise import renormalise_batchnorm
from tests.recover_models import same
from tests.test_recover_batchnorm import Fixed

pytestmark = pytest.mark.slow


def two_layers() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)]
        model = nn.Sequential(*parts).eval()
        for part in (model[1], model[4]):
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.2, 3)
    return model


def data(seed: int = 1) -> list[Batch]:
    x = torch.randn(96, 3, 9, 9, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return [((part,), None) for part in x.split(32)]


@pytest.mark.parametrize("traced", [False, True])
def test_outputs_stay_and_statistics_are_those_of_the_data(traced: bool) -> None:
    model = two_layers()
    if traced:
        model = dp.trace(model, (data()[0][0][0][:2],)).module
    before, plain = copy.deepcopy(model), copy.deepcopy(model)
    assert renormalise_batchnorm(model, data(), max_batches=3) == 2
    reestimate_batchnorm(plain, data(), max_batches=3)
    x = data(seed=2)[0][0][0]
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(x), before.eval()(x), rtol=1e-5, atol=1e-5)
    ours, theirs = model.state_dict(), plain.state_dict()
    for name in [
        n for n in theirs if n.startswith("1.") and n.split(".")[1] not in ("weight", "bias")
    ]:  # nothing is before
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-5)
    # Training mode computes the same function now, so that measuring again finds what is there, but for batches.
    reestimate_batchnorm(model, data(), max_batches=3)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, ours[name], rtol=0.03, atol=0.03)
    assert not torch.allclose(ours["4.running_mean"], before.state_dict()["4.running_mean"], atol=0.1)


def test_one_channel_by_hand() -> None:
    bn = nn.BatchNorm1d(1).eval()
    values = {"weight": 2.0, "bias": 1.0, "running_mean": 3.0, "running_var": 4.0}
    bn.load_state_dict({name: torch.tensor([value]) for name, value in values.items()}, strict=False)
    bn.eps = 1e-12
    assert renormalise_batchnorm(bn, [((torch.tensor([[0.0], [8.0]]),), None)], max_batches=1) == 1
    assert (bn.running_mean.item(), bn.running_var.item()) == (4.0, 32.0)
    assert bn.weight.item() == pytest.approx(2 * math.sqrt(32) / 2)
    assert bn.bias.item() == pytest.approx(1 + 2 * (4 - 3) / 2)


def test_channels_that_never_vary_or_do_nothing_stay_sane() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].weight[0, 0] = 1
        model[0].weight[1, 1] = 1e-6
        model[1].weight[0] = 0  # one without scale, one with hardly any variance, one that is constant
        model[1].running_var.copy_(torch.tensor([1.0, 1e-12, 0.0]))
    before = copy.deepcopy(model)
    assert renormalise_batchnorm(model, data(), max_batches=3) == 1
    x = data(seed=2)[0][0][0]
    with torch.no_grad():
        torch.testing.assert_close(model(x), before(x), rtol=1e-5, atol=1e-5)
    assert all(bool(t.isfinite().all()) for t in model.state_dict().values())
    assert model[1].weight[0].item() == 0.0
    assert model[1].weight.abs().max().item() < 10


class Shared(nn.Module):
    """Two norms with one scale, one without any, one that is frozen, and one that never learns statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bare = nn.BatchNorm1d(2), nn.BatchNorm1d(2), nn.BatchNorm1d(2, affine=False)
        self.b.weight = self.a.weight
        self.still, self.fixed = nn.BatchNorm1d(2).requires_grad_(False), Fixed()

    def forward(self, x: Tensor) -> Tensor:
        return self.fixed(self.still(self.bare(self.b(self.a(x)))[:, :1].expand(-1, 2)))[:, :1]


def test_what_cannot_take_up_the_change_stays_as_it_is() -> None:
    model = Shared().eval()
    model.fixed.running_mean, model.fixed.running_var = torch.zeros(2), torch.ones(2)
    before = copy.deepcopy(model)
    assert renormalise_batchnorm(model, [((torch.randn(16, 2),), None)], max_batches=1) == 0
    assert same(model, before)


@pytest.mark.parametrize("batches", [[], [((torch.full((2, 1), math.nan),), None)]])
def test_statistics_that_cannot_be_measured_are_an_error_and_keep_the_old(batches: list[Batch]) -> None:
    bn = nn.BatchNorm1d(1)
    before = copy.deepcopy(bn)
    with pytest.raises(InputError, match=r"no batch|'running_mean' is not finite"):
        renormalise_batchnorm(bn, batches, max_batches=1)
    assert same(bn, before)
