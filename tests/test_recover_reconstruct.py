"""Reconstruction finds exact solutions where there are some, and agrees with numpy's least squares."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deploypruner as dp
from deploypruner.errors import InputError
from deploypruner.graph import Graph
from deploypruner.train.least_squares import NormalEquations, columns, outputs
from deploypruner.train.reconstruct import reconstruct
from deploypruner.train.spread import Spread

pytestmark = pytest.mark.slow

SMALL = 1e-9  # a ridge that changes nothing


def drawn(make: type[nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()


def images(count: int = 64, channels: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, channels, 8, 8, generator=torch.Generator().manual_seed(seed))


def batches(x: Tensor) -> list[tuple[tuple[Tensor, ...], None]]:
    return [((part,), None) for part in x.split(16)]


def cut(graph: Graph, keep: dict[str, list[int]]) -> nn.Module:
    return graph.cut(graph.removed({name: np.array(kept) for name, kept in keep.items()})).eval()


class Redundant(nn.Module):
    """Channels 4 to 7 of the first layer are combinations of channels 0 to 3, without anything that bends them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 5, 3, padding=1)
        self.third = nn.Linear(5, 4)
        mixed = torch.randn(4, 4)
        with torch.no_grad():
            self.first.weight[4:] = torch.einsum("ij,jkhw->ikhw", mixed, self.first.weight[:4])
            self.first.bias[4:] = mixed @ self.first.bias[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)).mean(dim=(2, 3)))


def test_what_kept_channels_can_express_is_recovered_exactly() -> None:
    x = images()
    graph = dp.trace(drawn(Redundant), (x[:2],))
    keep = {graph.groups[0].id: [0, 1, 2, 3]}
    module = cut(graph, keep)
    with torch.no_grad():
        expected, before = graph.module(x), module(x)
    found = reconstruct(graph, {k: np.array(v) for k, v in keep.items()}, module, batches(x), ridge=SMALL)
    with torch.no_grad():
        after = module(x)
    assert float((before - expected).abs().max()) > 0.1
    torch.testing.assert_close(after, expected, rtol=1e-3, atol=1e-4)
    assert found.errors["second.weight"][0] > 0.1
    assert found.errors["second.weight"][1] < 1e-6
    assert found.errors["first.weight"][0] == 0.0


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.relu(self.first(x)))


def test_one_layer_agrees_with_numpys_least_squares() -> None:
    x = images()
    graph = dp.trace(drawn(Plain), (x[:2],))
    kept = np.array([1, 2, 5])
    module = cut(graph, {"first.weight:0": kept.tolist()})
    reconstruct(graph, {"first.weight:0": kept}, module, batches(x), ridge=SMALL, positions=10**6, gains=False)
    with torch.no_grad():
        target = graph.module(x)
        patches = F.unfold(F.relu(_first(graph, x)[:, kept]), 3, **_SECOND)
    rows = patches.mT.reshape(-1, 27).double().numpy()
    rows = np.concatenate([rows, np.ones((len(rows), 1))], axis=1)
    wanted = target.flatten(2).mT.reshape(-1, 4).double().numpy()
    solution, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
    np.testing.assert_allclose(
        module.second.weight.detach().reshape(4, 27).numpy(), solution[:27].T, rtol=1e-3, atol=1e-5
    )
    np.testing.assert_allclose(module.second.bias.detach().numpy(), solution[27], rtol=1e-3, atol=1e-5)


def test_a_solved_layer_varies_as_the_dense_one_does_around_the_mean_of_least_squares() -> None:
    x = images()
    graph = dp.trace(drawn(Plain), (x[:2],))
    keep = {"first.weight:0": np.array([1, 2, 4, 5])}
    plain, enlarged = (cut(graph, {name: kept.tolist() for name, kept in keep.items()}) for _ in range(2))
    for module, gains in ((plain, False), (enlarged, True)):
        reconstruct(graph, keep, module, batches(x), ridge=SMALL, positions=10**6, gains=gains)
    with torch.no_grad():
        wanted, smaller, found = (net(x).transpose(0, 1).flatten(1) for net in (graph.module, plain, enlarged))
    ratio = smaller.std(dim=1) / wanted.std(dim=1)
    assert float(ratio.min()) > 0.7
    assert float(ratio.max()) < 0.98  # else there is nothing to see, or too much
    torch.testing.assert_close(found.std(dim=1), wanted.std(dim=1), rtol=1e-3, atol=0.0)
    torch.testing.assert_close(found.mean(dim=1), smaller.mean(dim=1), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("weight", "noise", "gain"),
    # t = 3 x + noise, x of variance 4: the solution varies by 36, what is wanted by 36 + noise.
    [(0.0, 13.0, 7 / 6), (1.0, 13.0, 7 / 6), (3.0, 0.0, 1.0), (3.0, 64.0, 1.5)],
)
def test_the_gain_of_one_output_by_hand(weight: float, noise: float, gain: float) -> None:
    x = torch.tensor([2.0, 2.0, -2.0, -2.0, 2.0, 2.0, -2.0, -2.0])[None, :, None]
    unseen = noise**0.5 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, -1.0])[None, :, None]
    wanted = 3 * x + unseen + 50
    rows = torch.cat([x, torch.ones_like(x)], dim=2)
    missing = wanted - weight * x
    sums, spread = NormalEquations(1, 2, 1), Spread(1, 2, 1)
    sums.add(rows, missing)
    spread.add(rows, missing, wanted)
    correction = sums.solve(SMALL)
    assert correction.flatten().tolist() == pytest.approx([3 - weight, 50])
    weights = torch.tensor([[[weight]]], dtype=torch.float64)
    found = spread.gains(sums, correction, weights, constant=True)
    assert float(found) == pytest.approx(gain, rel=1e-4)


def test_what_else_arrives_counts_too() -> None:
    # A shortcut of variance 16 and 3 x of variance 36, independent, instead of a stream of variance 16 + 36 + 29:
    # with (1 + u) 3 x it varies by 16 + 36 (1 + u)^2, so that (1 + u)^2 = 65 / 36.
    x, shortcut, unseen = (
        torch.tensor(signs * 1.0)[None, :, None] * size
        for signs, size in (
            (np.array([1, 1, 1, 1, -1, -1, -1, -1]), 2),
            (np.array([1, 1, -1, -1, 1, 1, -1, -1]), 4),
            (np.array([1, -1, 1, -1, 1, -1, 1, -1]), 29**0.5),
        )
    )
    wanted = shortcut + 3 * x + unseen
    sums, spread = NormalEquations(1, 1, 1), Spread(1, 1, 1)
    sums.add(x, wanted - shortcut)
    spread.add(x, wanted - shortcut, wanted)
    found = spread.gains(sums, sums.solve(SMALL), torch.zeros(1, 1, 1, dtype=torch.float64), constant=False)
    assert float(found) == pytest.approx((65 / 36) ** 0.5, rel=1e-5)


_SECOND = {"stride": 2, "padding": 1, "dilation": 2}


def _first(graph: Graph, x: Tensor) -> Tensor:
    weights = dict(graph.module.named_parameters())
    return F.conv2d(x, weights["first.weight"], weights["first.bias"], padding=1)


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("padding", [0, 1, "same", "valid"])
def test_columns_times_weights_are_the_output_of_the_layer(groups: int, padding: int | str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 6, 7, 9, generator=generator), torch.randn(12, 6 // groups, 3, 2, generator=generator)
    arguments = {"weight": weight, "stride": [1, 1], "padding": padding, "dilation": [2, 2], "groups": groups}
    rows = columns("conv2d", arguments, x, None)
    y = F.conv2d(x, weight, stride=1, padding=padding, dilation=(2, 2), groups=groups)
    by_hand = rows @ weight.reshape(groups, 12 // groups, -1).mT
    torch.testing.assert_close(by_hand, outputs("conv2d", groups, y, None), rtol=1e-4, atol=1e-4)


def test_columns_of_one_axis_and_of_none() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 4, 9, generator=generator), torch.randn(6, 2, 3, generator=generator)
    arguments = {"weight": weight, "stride": [2], "padding": [1], "dilation": [1], "groups": 2}
    y = F.conv1d(x, weight, stride=2, padding=1, groups=2)
    by_hand = columns("conv1d", arguments, x, None) @ weight.reshape(2, 3, -1).mT
    torch.testing.assert_close(by_hand, outputs("conv1d", 2, y, None), rtol=1e-4, atol=1e-4)
    chosen = torch.tensor([3, 0])
    tokens, matrix = torch.randn(2, 5, 4, generator=generator), torch.randn(3, 4, generator=generator)
    taken = columns("linear", {}, tokens, chosen) @ matrix.mT
    torch.testing.assert_close(taken, outputs("linear", 1, tokens @ matrix.mT, chosen), rtol=1e-4, atol=1e-4)


def test_the_ridge_leaves_alone_what_the_samples_do_not_show() -> None:
    sums = NormalEquations(1, 2, 1)
    sums.add(torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), torch.tensor([[[3.0], [6.0]]]))
    found = sums.solve(1e-9)
    assert found.flatten().tolist() == pytest.approx([3.0, 0.0], abs=1e-6)
    assert sums.left(found) == pytest.approx(0.0, abs=1e-6)
    # Strength 0.4 * mean(5, 0) = 1: (5 + 1) d = 15.
    assert sums.solve(0.4)[0, 0, 0].item() == pytest.approx(2.5)


def test_a_correction_that_unseen_samples_contradict_is_none() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 40, 3, generator=generator)
    sums = NormalEquations(1, 3, 1)
    sums.add(
        x, torch.cat([x[:, :20, :1], -x[:, 20:, :1]], dim=1)
    )  # of the first half one thing is true, of the other not
    assert sums.solve(0.03).any()
    assert not sums.solve().any()


def test_the_pull_weakens_as_samples_agree() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(30, 2, generator=generator)
    gaps = []
    for count in (40, 4000):
        x = torch.randn(1, count, 30, generator=generator)
        sums = NormalEquations(1, 30, 2)
        sums.add(x, x @ truth + torch.randn(1, count, 2, generator=generator))
        gaps.append(float((sums.solve()[0] - truth).norm() / truth.norm()))
    assert gaps[0] < 0.9
    assert gaps[1] < 0.05


def test_few_samples_are_not_fitted_at_the_cost_of_others() -> None:
    """64 samples for 36 inputs: an exact fit halves the error elsewhere, the default leaves a third of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
        seen, others = torch.randn(64, 16), torch.randn(1000, 16)
    graph = dp.trace(net, seen[:2])
    keep = {"0.weight:0": np.arange(36)}
    error = {}
    for name, settings in (("nothing", None), ("exact", {"ridge": SMALL}), ("default", {})):
        module = graph.cut(graph.removed(keep))
        if settings is not None:
            reconstruct(graph, keep, module, batches(seen), **settings)
        error[name] = float((module(others) - net(others)).detach().square().sum())
    assert error["default"] < 0.4 * error["nothing"] < error["exact"]


class Varied(nn.Module):
    """A depthwise and a transposed convolution, a residual sum, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.inner = nn.Conv2d(8, 12, 1)
        self.back = nn.Conv2d(12, 8, 1)
        self.shared = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = y + self.back(F.relu_(self.inner(F.relu(self.depth(y)))))
        return self.up(self.shared(F.relu(self.shared(y))))


def test_any_graph_gets_closer_to_the_dense_one_and_memory_changes_nothing() -> None:
    x = images()
    graph = dp.trace(drawn(Varied), (x[:2],))
    keep = {g.id: np.arange(0, g.size, 2) for g in graph.groups}
    pruned = graph.cut(graph.removed(keep)).eval()
    ample, none = copy.deepcopy(pruned), copy.deepcopy(pruned)
    found = reconstruct(graph, keep, ample, batches(x))
    again = reconstruct(graph, keep, none, batches(x), memory=0)
    assert found == again
    assert all(torch.equal(a, b) for a, b in zip(ample.parameters(), none.parameters(), strict=True))
    assert found.left == {
        "shared.weight": "another layer shares its weight",
        "up.weight": "conv_transpose2d is not solved",
    }
    assert set(found.errors) == {"stem.0.weight", "depth.weight", "inner.weight", "back.weight"}
    assert all(after <= before for before, after in found.errors.values())
    assert found.errors["back.weight"][1] < 0.9 * found.errors["back.weight"][0]
    assert torch.equal(ample.shared.weight, pruned.shared.weight)
    assert torch.equal(ample.stem.get_submodule("1").running_mean, pruned.stem.get_submodule("1").running_mean)


def test_what_cannot_be_reconstructed_is_refused() -> None:
    x = images()
    graph = dp.trace(drawn(Plain), (x[:2],))
    keep = {"first.weight:0": np.array([1, 2])}
    with pytest.raises(InputError, match="no samples to reconstruct"):
        reconstruct(graph, keep, cut(graph, {"first.weight:0": [1, 2]}), [])
    with pytest.raises(InputError, match=r"inputs or outputs of 'first.weight' are not finite"):
        reconstruct(graph, keep, cut(graph, {"first.weight:0": [1, 2]}), batches(x * torch.nan))
    with pytest.raises(InputError, match=r"models that torch\.export traces"):
        reconstruct(graph, keep, drawn(Plain), batches(x))


@pytest.mark.parametrize(
    ("op", "shape", "weight", "options"),
    [
        (
            "conv2d",
            (2, 6, 9, 11),
            (8, 3, 3, 2),
            {"stride": [2, 1], "padding": [1, 2], "dilation": [1, 2], "groups": 2},
        ),
        ("conv2d", (2, 6, 9, 11), (6, 1, 3, 3), {"stride": [1], "padding": "same", "dilation": [1], "groups": 6}),
        ("conv1d", (2, 4, 15), (5, 4, 3), {"stride": [2], "padding": [1], "dilation": [2], "groups": 1}),
    ],
)
def test_patches_of_some_positions_are_those_of_all(op, shape, weight, options):
    x, arguments = torch.randn(shape), {"weight": torch.randn(weight), **options}
    every = columns(op, arguments, x, None)
    groups, rows, width = every.shape
    chosen = torch.randperm(rows // 2)[:7]
    wanted = every.view(groups, 2, rows // 2, width)[:, :, chosen].flatten(1, 2)
    assert torch.equal(columns(op, arguments, x, chosen), wanted)
