"""Every criterion obeys its contract, and the numbers of each can be checked by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deploypruner.criteria import Needs, criteria
from deploypruner.criteria.magnitude import Magnitude
from deploypruner.criteria.taylor import Taylor
from deploypruner.errors import InputError, RecipeError
from deploypruner.graph import trace
from deploypruner.prune.evidence import score_groups
from deploypruner.records import MemberView
from deploypruner.stages.score import make_criterion
from tests.nets import NETS, make

ALL = list(criteria)


def a_group(channels: int = 6) -> tuple[MemberView, ...]:
    generator = torch.Generator().manual_seed(1)
    shapes = (("conv.weight", "producer", 9), ("bn.weight", "norm", 1), ("next.weight", "consumer", 18))
    return tuple(
        MemberView(
            name,
            role,
            torch.randn(channels, size, generator=generator),
            torch.randn(channels, size, generator=generator),
            torch.randn(4, channels, generator=generator) if role == "norm" else None,
        )
        for name, role, size in shapes
    )


def reordered(group: tuple[MemberView, ...], order: torch.Tensor) -> tuple[MemberView, ...]:
    return tuple(
        MemberView(m.name, m.role, m.weight[order], m.grad[order], None if m.gate is None else m.gate[:, order])
        for m in group
    )


@pytest.mark.parametrize("name", ALL)
def test_scores_are_one_finite_number_per_channel(name):
    score = criteria.get(name)().score(a_group())
    assert score.shape == (6,)
    assert score.dtype == torch.float32
    assert torch.isfinite(score).all()


@pytest.mark.parametrize("name", ALL)
def test_relabelling_channels_relabels_scores(name):
    criterion, group = criteria.get(name)(), a_group()
    order = torch.randperm(6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(criterion.score(reordered(group, order)), criterion.score(group)[order])


@pytest.mark.parametrize("name", ALL)
def test_every_criterion_names_its_source(name):
    assert "Source:" in (criteria.get(name).__doc__ or "")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("net", sorted(set(NETS) - {"in place"}))  # its own author cannot differentiate it
def test_every_criterion_scores_every_network(name, net):
    graph = trace(*make(net))
    shape = (4, *NETS[net][1][1:])
    generator = torch.Generator().manual_seed(0)
    batches = [((torch.randn(shape, generator=generator),), None) for _ in range(2)]
    scores = score_groups(graph, criteria.get(name)(), batches)
    assert {g.id: g.size for g in graph.groups} == {key: len(value) for key, value in scores.items()}


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


def test_taylor_by_hand():
    """Two minibatches, two members: (1 + 2)^2 and (0 - 1)^2 average to 5; signs may cancel."""
    zero = torch.zeros(2, 1)
    a = MemberView("a", "norm", zero, None, torch.tensor([[1.0, 1.0], [0.0, 2.0]]))
    b = MemberView("b", "norm", zero, None, torch.tensor([[2.0, -1.0], [-1.0, -2.0]]))
    assert Taylor().score((a, b)).tolist() == [5.0, 0.0]


def test_the_gate_derivative_is_that_of_an_explicit_gate_after_batch_norm():
    """dL/dz = gamma dL/dgamma + beta dL/dbeta, against autograd through a real gate."""
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
    net.b[1] = nn.Sequential(net.b[1], gate)
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


def test_a_gradient_criterion_without_data_says_what_to_do():
    graph = trace(*make("residual"))
    with pytest.raises(RecipeError, match=r"'taylor' looks at gradients and needs data[\s\S]*--criterion magnitude"):
        score_groups(graph, Taylor(), None)
    assert Magnitude.needs == Needs.WEIGHTS


def test_a_model_without_a_gradient_offers_a_criterion_that_needs_none():
    net, x = make("in place")
    with pytest.raises(InputError, match=r"the model has no gradient: [\s\S]*--criterion magnitude"):
        score_groups(trace(net, x), Taylor(), [((x,), None)])


def test_a_batch_of_nan_is_named():
    net, x = make("residual")
    with pytest.raises(InputError, match="loss of scoring batch 2 is nan"):
        score_groups(trace(net, x), Taylor(), [((x,), None), ((x * float("nan"),), torch.tensor([0, 1]))])


def test_unknown_names_and_parameters_offer_the_nearest():
    with pytest.raises(RecipeError, match=r"no criterion called 'magnitud'[\s\S]*did you mean 'magnitude'\?"):
        make_criterion("magnitud", {})
    with pytest.raises(RecipeError, match=r"'magnitude' has no parameter 'q'"):
        make_criterion("magnitude", {"q": 1})
    with pytest.raises(RecipeError, match=r"criterion.p must be > 0, got -1"):
        make_criterion("magnitude", {"p": -1})
    with pytest.raises(RecipeError, match=r"'magnitude': p: "):
        make_criterion("magnitude", {"p": "many"})
