"""Every criterion obeys its contract, and the numbers of each can be checked by hand."""

from __future__ import annotations

import functools
from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from deploypruner.build.criterion import make_criterion
from deploypruner.channels.criteria import Needs, criteria
from deploypruner.channels.criteria.activation import Activation
from deploypruner.channels.criteria.bn_scale import BatchNormScale
from deploypruner.channels.criteria.fpgm import Fpgm
from deploypruner.channels.criteria.hessian import Hessian
from deploypruner.channels.criteria.magnitude import Magnitude
from deploypruner.channels.criteria.oracle import Oracle
from deploypruner.channels.criteria.random import Random
from deploypruner.channels.criteria.taylor import Taylor
from deploypruner.channels.statistics import curvature, passes, score_groups
from deploypruner.channels.statistics.passes import Passes, differentiate
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import Graph, trace
from deploypruner.records import ChannelEvidence, MemberView
from tests.nets import NETS, make

ALL = list(criteria)
# Variants whose evidence is another one than that of the default.
VARIANTS = {
    **{name: criteria.get(name)() for name in ALL},
    "taylor group": Taylor(of="group"),
    "taylor individual": Taylor(of="individual"),
    "taylor second order": Taylor(order=2),
    "apoz": Activation(statistic="apoz"),
    "taylor momentum": Taylor(momentum=0.9),
}
# Does not look at channels, so that it cannot follow them.
BLIND = {"random"}


@functools.cache
def traced(net: str) -> Graph:
    """Traced once; scoring leaves a graph as it is."""
    return trace(*make(net))


@functools.cache
def branching() -> Graph:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return trace(Branching().eval(), torch.randn(2, 3, 6, 6))


def a_group(channels: int = 6) -> tuple[MemberView, ...]:
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    seen = ChannelEvidence(
        activation=numbers(channels).abs(),
        active=numbers(channels).sigmoid(),
        gate=numbers(4, channels),
        gate_curvature=numbers(channels),
        closing=numbers(4, channels),
    )
    shapes = (("conv.weight", "producer", 9), ("bn.weight", "norm", 1), ("next.weight", "consumer", 18))
    return tuple(
        MemberView(
            name,
            role,
            numbers(channels, size),
            gate=numbers(4, channels) if role == "norm" else None,
            slope=numbers(4, channels),
            slope_squares=numbers(4, channels).square(),
            curvature=numbers(channels, size),
            channels=seen,
        )
        for name, role, size in shapes
    )


def reordered(group: tuple[MemberView, ...], order: Tensor) -> tuple[MemberView, ...]:
    """Channels in another order: the first axis of weights and curvature, the last one of everything else."""

    def last(evidence):
        tensors = {
            f.name: getattr(evidence, f.name) for f in fields(evidence) if f.name not in ("weight", "curvature")
        }
        return {k: v[..., order] for k, v in tensors.items() if isinstance(v, Tensor)}

    return tuple(
        replace(
            m,
            **{
                **last(m),
                "weight": m.weight[order],
                "curvature": m.curvature[order],
                "channels": ChannelEvidence(**last(m.channels)),
            },
        )
        for m in group
    )


def one(weight: list[list[float]], role: str = "producer", **evidence: Tensor) -> MemberView:
    return MemberView("fc.weight", role, torch.tensor(weight), **evidence)


def trained(width: int = 8) -> tuple[nn.Module, Tensor, Tensor]:
    """Two layers a few steps into training, so that the loss has a gradient and a curvature."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3))
        x, y = torch.randn(16, 6), torch.arange(16) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(20):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval(), x, y


@pytest.mark.parametrize("name", VARIANTS)
def test_scores_are_one_finite_number_per_channel(name):
    score = VARIANTS[name].score(a_group())
    assert score.shape == (6,)
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - BLIND))
def test_relabelling_channels_relabels_scores(name):
    criterion, group = VARIANTS[name], a_group()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(criterion.score(reordered(group, order)), criterion.score(group)[order])


class Branching(nn.Module):
    """Control flow that torch.export refuses: torch-pruning traces it, without a graph of operators."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        if x.sum() > -1:
            x = 2 * x
        return self.last(x).mean((2, 3))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_criterion_scores_a_model_without_a_graph(name):
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    graph = branching()
    assert graph.front_end == "torch-pruning"
    (scores,) = score_groups(graph, VARIANTS[name], [((x,), torch.tensor([0, 1]))]).values()
    assert scores.shape == (8,)
    if name == "activation":
        net = graph.module
        expected = 2 * net.norm(net.conv(x)).relu().mean(dim=(0, 2, 3))
        torch.testing.assert_close(scores, expected.detach(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_every_criterion_names_its_source(name):
    assert "Source:" in (criteria.get(name).__doc__ or "")


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("net", sorted(set(NETS) - {"in place"}))  # its own author cannot differentiate it
def test_every_criterion_scores_every_network(name, net):
    graph = traced(net)
    generator = torch.Generator().manual_seed(0)
    batches = [((torch.randn(2, *NETS[net][1][1:], generator=generator),), None) for _ in range(2)]
    if name == "oracle":  # a forward pass per channel: the narrow groups will do
        graph = replace(graph, groups=tuple(g for g in graph.groups if g.size <= 8)[:2])
        batches = batches[:1]
    scores = score_groups(graph, VARIANTS[name], batches)
    assert {g.id: g.size for g in graph.groups} == {key: len(value) for key, value in scores.items()}


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - BLIND - {"hessian", "taylor second order"}))
def test_permuting_the_channels_of_a_model_permutes_its_scores(name):
    """Curvature is left out: its random probes do not follow the channels. It is compared with the truth below."""
    net, x = make("residual")
    other, _ = make("residual")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():  # the channels between the stem and everything after it, which stays within one stream
        for layer in (other.stem[0], other.a[0]):
            layer.weight.copy_(layer.weight[order])
        for norm in (other.stem[1], other.a[1]):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                tensor.copy_(tensor[order])
        for layer in (other.a[0], other.b[0], other.project):
            layer.weight.copy_(layer.weight[:, order])
    batches = [((x,), torch.tensor([1, 3]))]
    first, second = (score_groups(trace(n, x), VARIANTS[name], batches) for n in (net, other))
    scale = float(first["stem.0.weight:0"].abs().max())
    torch.testing.assert_close(
        second["stem.0.weight:0"], first["stem.0.weight:0"][order], rtol=1e-3, atol=1e-5 * scale
    )


@pytest.mark.parametrize("name", sorted(set(VARIANTS) - {"taylor second order"}))  # its probes are drawn per group
def test_leaving_a_group_out_of_a_graph_leaves_the_scores_of_the_others(name):
    graph, (_, x) = traced("residual"), make("residual")
    batches = [((x,), torch.tensor([1, 3]))]
    some = replace(graph, groups=graph.groups[1:])
    every, rest = (score_groups(g, VARIANTS[name], batches) for g in (graph, some))
    assert set(every) - set(rest) == {graph.groups[0].id}
    for group, scores in rest.items():
        torch.testing.assert_close(scores, every[group])


@pytest.mark.parametrize("name", VARIANTS)
def test_the_same_seed_gives_the_same_scores(name):
    graph = traced("vgg")
    x = torch.randn(2, *NETS["vgg"][1][1:], generator=torch.Generator().manual_seed(0))
    first, again = (score_groups(graph, VARIANTS[name], [((x,), None)], seed=5) for _ in range(2))
    assert all(torch.equal(first[g], again[g]) for g in first)


def test_magnitude_by_hand():
    """L1 masses 3 and 3, L2 masses 5 and 9, each relative to its mean."""
    only = MemberView("fc.weight", "producer", torch.tensor([[1.0, -2.0], [0.0, 3.0]]))
    assert Magnitude(p=1).score((only,)).tolist() == [1.0, 1.0]
    torch.testing.assert_close(Magnitude(p=2).score((only,)), torch.tensor([5 / 7, 9 / 7]))


def test_magnitude_weighs_layers_equally_whatever_their_scale():
    small = MemberView("a", "producer", torch.tensor([[1.0], [3.0]]))
    large = MemberView("b", "consumer", torch.tensor([[3000.0], [1000.0]]))
    assert Magnitude().score((small, large)).tolist() == [1.0, 1.0]


def test_magnitude_ignores_normalisation_where_there_are_layers():
    layer = MemberView("a", "producer", torch.tensor([[1.0], [3.0]]))
    norm = MemberView("n", "norm", torch.tensor([[9.0], [0.0]]))
    assert Magnitude().score((layer, norm)).tolist() == Magnitude().score((layer,)).tolist()


def test_bn_scale_by_hand():
    """Scales |1|, |-3| and |2|, |1| average to 1.5 and 2; shifts and weights do not count."""
    norms = (one([[1.0], [-3.0]], "norm"), one([[2.0], [1.0]], "norm"))
    rest = (one([[9.0], [0.0]], "shift"), one([[5.0, 5.0], [0.0, 0.0]]))
    assert BatchNormScale().score((*norms, *rest)).tolist() == [1.5, 2.0]


def test_bn_scale_without_a_norm_is_the_length_of_the_filter():
    producer, consumer = one([[3.0, -4.0], [0.0, 1.0]]), one([[9.0], [9.0]], "consumer")
    assert BatchNormScale().score((producer, consumer)).tolist() == [5.0, 1.0]


def test_bn_scale_knows_scales_from_shifts_in_a_real_network():
    net, _ = make("residual")
    scores = score_groups(traced("residual"), BatchNormScale(), None)
    expected = (net.stem[1].weight.abs() + net.a[1].weight.abs()) / 2
    torch.testing.assert_close(scores["stem.0.weight:0"], expected.detach())


def test_fpgm_by_hand():
    """Filters at 0, 3 and 4 on a line have distances 7, 4 and 5 to the others: the middle one is the nearest."""
    filters = one([[0.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    expected = torch.tensor([7.0, 4.0, 5.0]) * 3 / 16
    torch.testing.assert_close(Fpgm().score((filters, one([[1.0], [2.0], [9.0]]))), expected)  # a bias has no shape


def test_fpgm_by_a_matrix_product_is_fpgm_row_by_row():
    rows = torch.randn(12, 30, generator=torch.Generator().manual_seed(0)) + 5
    rows[3] = rows[7]
    sums = torch.stack([(rows - row).norm(dim=1).sum() for row in rows])
    torch.testing.assert_close(Fpgm().score((one(rows.tolist()),)), sums / sums.mean())
    near_two = Fpgm(p=2 + 1e-9).score((one(rows.tolist()),))
    torch.testing.assert_close(Fpgm().score((one(rows.tolist()),)), near_two)


def test_activation_by_hand():
    """Channels relu(x) and relu(-x) over 1, -1, -2, 0: means 1/4 and 3/4, a quarter and half of them not zero."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 3)).eval()
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        net[0].bias.zero_()
    x = torch.tensor([[1.0], [-1.0], [-2.0], [0.0]])
    graph, batches = trace(net, x), [((x[:2],), None), ((x[2:],), None)]
    assert score_groups(graph, Activation(), batches)["0.weight:0"].tolist() == [0.25, 0.75]
    assert score_groups(graph, Activation(statistic="apoz"), batches)["0.weight:0"].tolist() == [0.25, 0.5]


def test_activations_are_taken_where_the_channel_is_read():
    """A stream is read by the three convolutions behind it, in front of which the additions and ReLUs are done."""
    net, x = make("residual")
    with torch.no_grad():
        stem = net.stem(x)
        stream = stem + net.a(stem)
    expected = torch.stack([stem, stream, stream]).abs().mean(dim=(0, 1, 3, 4))
    found = score_groups(traced("residual"), Activation(), [((x,), None)])["stem.0.weight:0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_activations_of_flattened_channels_are_those_of_their_pixels():
    net, x = make("vgg")
    with torch.no_grad():
        pixels = nn.functional.adaptive_avg_pool2d(net.a(x), 4)
    found = score_groups(traced("vgg"), Activation(), [((x,), None)])["a.0.weight:0"]
    torch.testing.assert_close(found, pixels.abs().mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-6)


def test_random_differs_by_seed_and_by_group():
    scores = [Random(seed=s).score((MemberView(n, "producer", torch.ones(6, 1)),)) for s, n in ((0, "a"), (1, "a"))]
    other = Random().score((MemberView("b", "producer", torch.ones(6, 1)),))
    assert not torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], other)


def test_taylor_by_hand():
    """Two minibatches, two members: (1 + 2)^2 and (0 - 1)^2 average to 5; signs may cancel."""
    a = one([[0.0], [0.0]], "norm", gate=torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    b = one([[0.0], [0.0]], "norm", gate=torch.tensor([[2.0, -1.0], [-1.0, -2.0]]))
    assert Taylor().score((a, b)).tolist() == [5.0, 0.0]


def test_taylor_momentum_by_hand():
    """The first minibatch starts the mean: 4, then 0.5 * 4 + 0.5 * 16 = 10."""
    gate = one([[0.0]], "norm", gate=torch.tensor([[2.0], [4.0]]))
    assert Taylor(momentum=0.5).score((gate,)).tolist() == [10.0]


def test_taylor_of_weights_by_hand():
    """g w = (1, -3) and (2, 2): the group squares the sum, the individuals sum the squares."""
    rows = one([[1.0, 1.0]], slope=torch.tensor([[-2.0], [4.0]]), slope_squares=torch.tensor([[10.0], [8.0]]))
    assert Taylor(of="group").score((rows,)).tolist() == [(4.0 + 16.0) / 2]
    assert Taylor(of="individual").score((rows,)).tolist() == [9.0]


def test_second_order_taylor_by_hand():
    """Closing a gate changes the loss by -g + h / 2: -1 + 4 / 2 = 1 and -3 + 2 = -1."""
    seen = ChannelEvidence(gate=torch.tensor([[1.0], [3.0]]), gate_curvature=torch.tensor([4.0]))
    assert Taylor(order=2).score((one([[0.0]], channels=seen),)).tolist() == [1.0]


def test_hessian_by_hand():
    """Half of 2 * 1 + 4 * 9 and of 0, over all members: plus half of 6 * 1."""
    a = one([[1.0, 3.0], [0.0, 0.0]], curvature=torch.tensor([[2.0, 4.0], [5.0, 5.0]]))
    b = one([[1.0], [0.0]], "consumer", curvature=torch.tensor([[6.0], [6.0]]))
    assert Hessian().score((a, b)).tolist() == [22.0, 0.0]


def test_weights_times_gradients_are_those_of_autograd():
    net, x, y = trained()
    scores = {of: score_groups(trace(net, x), Taylor(of=of), [((x,), y)]) for of in ("group", "individual")}
    nn.functional.cross_entropy(net(x), y).backward()
    products = torch.cat([net[0].weight * net[0].weight.grad, (net[0].bias * net[0].bias.grad)[:, None]], dim=1)
    torch.testing.assert_close(scores["group"]["0.weight:0"], products.sum(dim=1).square().detach())
    torch.testing.assert_close(scores["individual"]["0.weight:0"], products.square().sum(dim=1).detach())


@pytest.fixture
def every_direction(monkeypatch):
    """Probes that are the rows of a Hadamard matrix: over all 64 of them the estimate is exact."""
    rows = torch.tensor(scipy.linalg.hadamard(64)).float()

    def probed(passes, grads, variables, probes):
        for row in rows[:probes]:
            parts = iter(row[: sum(v.numel() for v in variables)].split([v.numel() for v in variables]))
            monkeypatch.setattr(Passes, "signs", lambda _, like, parts=parts: next(parts).view_as(like))
            yield from original(passes, grads, variables, 1)

    def kept(loss, weights, *, again=False, keep=False, what="gradient"):
        return differentiate(loss, weights, again=again, keep=True, what=what)

    original = curvature._probed
    monkeypatch.setattr(curvature, "_probed", probed)
    monkeypatch.setattr(curvature, "differentiate", kept)


def test_the_diagonal_is_that_of_the_full_hessian(every_direction):
    net, x, y = trained(width=4)
    parameters = dict(net.named_parameters())

    def loss(flat: Tensor) -> Tensor:
        parts = flat.split([p.numel() for p in parameters.values()])
        named = {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(net, named, (x,)), y)

    flat = torch.cat([p.detach().flatten() for p in parameters.values()])
    diagonal = torch.autograd.functional.hessian(loss, flat).diagonal()
    saliency = (flat.square() * diagonal / 2).split([p.numel() for p in parameters.values()])
    weight, bias, last, _ = (part.view_as(p) for part, p in zip(saliency, parameters.values(), strict=True))
    expected = weight.sum(dim=1) + bias + last.sum(dim=0)
    found = score_groups(trace(net, x), Hessian(probes=64), [((x,), y)])["0.weight:0"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_second_order_gate_is_that_of_an_explicit_gate(every_direction):
    net, x, y = trained(width=4)

    def loss(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(net[2](torch.tanh(net[0](x) * z)), y)

    z = torch.ones(4, requires_grad=True)
    (slope,) = torch.autograd.grad(loss(z), z)
    bend = torch.autograd.functional.hessian(loss, z.detach()).diagonal()
    found = score_groups(trace(net, x), Taylor(order=2, probes=64), [((x,), y)])["0.weight:0"]
    torch.testing.assert_close(found, (bend / 2 - slope).square(), rtol=1e-4, atol=1e-8)


def test_random_probes_come_close_to_the_diagonal():
    net, x, y = trained(width=4)
    graph = trace(net, x)
    few, many = (score_groups(graph, Hessian(probes=n), [((x,), y)], seed=s) for n, s in ((100, 0), (100, 1)))
    torch.testing.assert_close(few["0.weight:0"], many["0.weight:0"], rtol=0.5, atol=0.05)
    assert not torch.equal(few["0.weight:0"], many["0.weight:0"])


def test_the_oracle_is_the_loss_of_the_removed_model():
    net, x = make("residual")
    y, graph = torch.tensor([1, 3]), traced("residual")
    graph = replace(graph, groups=graph.groups[:1])
    scores = score_groups(graph, Oracle(signed=True), [((x,), y)])
    (group,) = graph.groups
    with torch.no_grad():
        dense = nn.functional.cross_entropy(net(x), y)
        for channel in (0, 5, group.size - 1):
            keep = {group.id: np.delete(np.arange(group.size), channel)}
            small = graph.cut(graph.removed(keep)).eval()
            change = nn.functional.cross_entropy(small(x), y) - dense
            torch.testing.assert_close(scores[group.id][channel], change, rtol=1e-3, atol=1e-5)


def test_the_oracle_squares_its_change_unless_told_otherwise():
    seen = ChannelEvidence(closing=torch.tensor([[-3.0, 1.0], [-1.0, 3.0]]))
    member = one([[0.0], [0.0]], channels=seen)
    assert Oracle().score((member,)).tolist() == [4.0, 4.0]
    assert Oracle(signed=True).score((member,)).tolist() == [-2.0, 2.0]


def test_the_oracle_looks_at_no_more_batches_than_asked():
    graph, seen = traced("vgg"), []
    x = torch.randn(2, *NETS["vgg"][1][1:])
    graph = replace(graph, groups=graph.groups[:1])
    score_groups(graph, Oracle(batches=2), [((x,), None)] * 5, on_batch=lambda: seen.append(1))
    assert len(seen) == 2


@pytest.mark.parametrize("criterion", [Taylor(), Taylor(of="group")])
def test_a_minibatch_in_parts_gives_the_same_scores(criterion, monkeypatch):
    net, x, y = trained()
    whole = score_groups(trace(net, x), criterion, [((x,), y)])
    monkeypatch.setattr(passes, "_HELD", 2000)
    parts = score_groups(trace(net, x), criterion, [((x,), y)])
    torch.testing.assert_close(parts["0.weight:0"], whole["0.weight:0"], rtol=1e-4, atol=1e-9)


def test_the_gate_derivative_is_that_of_explicit_gates_after_batch_norm_and_on_the_shortcut():
    """dL/dz = gamma dL/dgamma + beta dL/dbeta, and the shortcut's share, against autograd through real gates."""
    net, x = make("residual")
    y = torch.tensor([1, 3])
    scores = score_groups(trace(net, x), Taylor(), [((x,), y)])

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.z = nn.Parameter(torch.ones(24))

        def forward(self, x):
            return x * self.z[:, None, None]

    gate = Gate()
    net.b[1], net.project = nn.Sequential(net.b[1], gate), nn.Sequential(net.project, gate)
    torch.nn.functional.cross_entropy(net(x), y).backward()
    torch.testing.assert_close(scores["b.0.weight:0"], gate.z.grad.square(), rtol=1e-4, atol=1e-9)


def test_without_batch_norm_the_gate_sits_on_the_layers_output():
    net = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, y = torch.randn(4, 12), torch.tensor([0, 1, 2, 0])
    scores = score_groups(trace(net, x), Taylor(), [((x,), y)])["0.weight:0"]
    z = torch.ones(8, requires_grad=True)
    torch.nn.functional.cross_entropy(net[2]((net[0](x) * z).relu()), y).backward()
    torch.testing.assert_close(scores, z.grad.square(), rtol=1e-4, atol=1e-9)


def test_scoring_leaves_the_graph_as_it_was():
    net, x = make("residual")
    graph = trace(net, x)
    before = {k: v.clone() for k, v in graph.module.state_dict().items()}
    score_groups(graph, Taylor(), [((x,), None)])
    assert all(torch.equal(v, before[k]) for k, v in graph.module.state_dict().items())
    assert all(p.grad is None for p in graph.module.parameters())


def test_unlabelled_scores_are_the_same_for_the_same_seed():
    net, x = make("residual")
    graph = trace(net, x)
    first, again, other = (score_groups(graph, Taylor(), [((x,), None)], seed=s) for s in (0, 0, 1))
    assert all(torch.equal(first[g], again[g]) for g in first)
    assert not all(torch.equal(first[g], other[g]) for g in first)


@pytest.mark.parametrize(
    ("criterion", "what"), [(Taylor(), "gradients"), (Activation(), "activations"), (Oracle(), "the loss")]
)
def test_a_criterion_that_needs_data_says_for_what(criterion, what):
    name = type(criterion).__name__.lower()
    with pytest.raises(RecipeError, match=rf"'{name}' looks at {what} and needs data[\s\S]*--criterion magnitude"):
        score_groups(traced("vgg"), criterion, None)


def test_no_batch_at_all_is_refused():
    with pytest.raises(InputError, match="the scoring data has no batches"):
        score_groups(traced("vgg"), Taylor(), [])


def test_weights_alone_are_enough_for_magnitude():
    assert Magnitude.needs == Needs.WEIGHTS
    assert score_groups(traced("vgg"), Magnitude(), None)


def test_a_model_without_a_gradient_offers_a_criterion_that_needs_none():
    net, x = make("in place")
    with pytest.raises(InputError, match=r"the model has no gradient: [\s\S]*--criterion magnitude"):
        score_groups(trace(net, x), Taylor(), [((x,), None)])


@pytest.mark.parametrize("criterion", [Taylor(), Hessian(), Taylor(order=2), Oracle()])
def test_a_batch_of_nan_is_named(criterion):
    net, x, y = trained(width=4)
    with pytest.raises(InputError, match="loss of scoring batch 2 is nan"):
        score_groups(trace(net, x), criterion, [((x,), y), ((x * float("nan"),), y)])


def test_a_batch_of_activations_that_are_nan_is_named():
    net, x, _ = trained(width=4)
    with pytest.raises(InputError, match=r"scoring batch 2 gives activations of '0.weight:0' that are not finite"):
        score_groups(trace(net, x), Activation(), [((x,), None), ((x * float("nan"),), None)])


def test_unknown_names_and_parameters_offer_the_nearest():
    with pytest.raises(RecipeError, match=r"no criterion called 'magnitud'[\s\S]*did you mean 'magnitude'\?"):
        make_criterion("magnitud", {})
    with pytest.raises(RecipeError, match=r"'magnitude' has no parameter 'q'"):
        make_criterion("magnitude", {"q": 1})
    with pytest.raises(RecipeError, match=r"criterion.p must be > 0, got -1"):
        make_criterion("magnitude", {"p": -1})
    with pytest.raises(RecipeError, match=r"criterion.probes must be at least 1, got 0"):
        make_criterion("hessian", {"probes": 0})
    with pytest.raises(RecipeError, match=r"criterion.momentum must be from 0 to below 1, got 1"):
        make_criterion("taylor", {"momentum": 1.0})
    with pytest.raises(RecipeError, match=r"order = 2 is there for of = 'gate' only, not 'group'"):
        make_criterion("taylor", {"of": "group", "order": 2})
    with pytest.raises(RecipeError, match=r"'magnitude': p: "):
        make_criterion("magnitude", {"p": "many"})
