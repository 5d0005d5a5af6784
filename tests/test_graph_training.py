"""A pruned module trains as its model does: outputs, running statistics and gradients, with the same seed."""

from __future__ import annotations

import copy
import io
import random
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner import Constraints, trace
from deploypruner.channels.allocate import allocate
from deploypruner.channels.criteria.magnitude import Magnitude
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove
from deploypruner.channels.statistics import score_groups
from deploypruner.errors import InputError
from deploypruner.graph.execute.module import TracedModule
from deploypruner.recipe.budget import Budget
from deploypruner.train.modes import outputs_as_evaluated
from tests.training_nets import BEYOND, NETS, Auxiliary, ForwardsOnly, Probabilities, Skipping, inputs_of

pytestmark = pytest.mark.slow


def built(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    net, x = NETS[name](), inputs_of(name)
    with torch.no_grad():
        net.train()(x)
    return net.eval(), x


def leaves(output: object) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def step(module: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Outputs, gradients and buffers of one step in training mode."""
    torch.manual_seed(1)
    outputs = leaves(module.train()(x))
    sum(o.square().mean() for o in outputs).backward()
    grads = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    return [o.detach() for o in outputs], grads, dict(module.named_buffers())


@pytest.mark.parametrize("name", NETS)
def test_the_graph_trains_as_the_model(name):
    net, x = built(name)
    graph = trace(net, x)
    assert not graph.trains_differently
    pruned = remove(graph, make_plan(graph, {}, criterion="given", scope="given", step=1))
    saved = io.BytesIO()
    torch.save(pruned, saved)
    saved.seek(0)
    again = torch.load(saved, weights_only=False)
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    wanted = step(net, x)
    for module in (copy.deepcopy(pruned), again):
        got = step(module, x)
        torch.testing.assert_close(got[0], wanted[0], rtol=1e-5, atol=1e-6)
        assert got[1].keys() == wanted[1].keys()
        for key, grad in got[1].items():
            torch.testing.assert_close(grad, wanted[1][key], rtol=1e-4, atol=1e-6)
        for key, buffer in wanted[2].items():
            if not key.endswith("num_batches_tracked"):  # read where the momentum is None only
                torch.testing.assert_close(got[2].get(key, before[key]), buffer, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("net", [Auxiliary, Probabilities])
def test_recovery_compares_outputs_of_evaluation(net):
    x = torch.randn(4, 3, 10, 10)
    graph = trace(net().eval(), x)
    module = graph.module
    assert isinstance(module, TracedModule)
    assert module.other_outputs
    assert any("returns something else" in remark for remark in graph.remarks)
    usual = module.eval()(x)
    with outputs_as_evaluated(module):
        trained = module.train()(x)
    assert [t.shape for t in leaves(trained)] == [t.shape for t in leaves(usual)]
    if net is Probabilities:
        torch.testing.assert_close(trained.sum(1), torch.ones(4))


@pytest.mark.parametrize("name", BEYOND)
def test_what_cannot_be_kept_is_said_and_the_model_stays_as_it_was(name):
    torch.manual_seed(0)
    make, said = BEYOND[name]
    net = make().eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    drawn = random.getstate(), np.random.get_state()[2], torch.get_rng_state()
    graph = trace(net, torch.randn(4, 5, 12, generator=torch.Generator().manual_seed(0)))
    assert "does not train as the model does" in graph.trains_differently
    assert re.search(said, graph.trains_differently)
    assert graph.trains_differently in graph.remarks
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    assert (random.getstate(), np.random.get_state()[2]) == drawn[:2]
    assert torch.equal(torch.get_rng_state(), drawn[2])


def test_gradients_that_could_not_be_compared_are_named():
    torch.manual_seed(0)
    net = ForwardsOnly().eval()
    graph = trace(net, torch.randn(4, 5, 12))
    assert graph.trains_differently.startswith("the gradients of the model could not be compared")
    assert "this kernel has no backward pass" in graph.trains_differently
    assert graph.trains_differently in graph.remarks
    assert all(p.grad is None for p in net.parameters())


def test_where_the_graph_cannot_the_own_class_is_there():
    net = Skipping(random.random).eval()
    graph = trace(net, torch.randn(4, 5, 12))
    plan = allocate(
        graph, score_groups(graph, Magnitude(), None), Budget(macs=0.6), criterion="magnitude", normalizer="mean"
    )
    assert type(plan.apply_to(net)) is Skipping


class Sized(nn.Module):
    """Divides by the area it was given, or mixes tokens of fixed number."""

    def __init__(self, *, fixed: bool) -> None:
        super().__init__()
        self.a, self.c, self.fixed = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(16, 5), fixed

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        y = self.a(x).relu()
        if self.fixed:  # every size runs, and means something else to a program with the area in it
            return self.c(y.sum((2, 3)) / float(torch.tensor([h * w]).sum()))
        return self.c(y.sum((2, 3)) / (h * w))


def test_other_sizes_are_right():
    net = Sized(fixed=False).eval()
    graph = trace(net, torch.randn(2, 3, 32, 32))
    x = torch.randn(3, 3, 48, 80)
    torch.testing.assert_close(graph.module(x), net(x))


def test_other_sizes_are_refused_where_they_would_be_wrong():
    net = Sized(fixed=True).eval()
    graph = trace(net, torch.randn(2, 3, 32, 32))
    module = copy.deepcopy(graph.module)
    module(torch.randn(5, 3, 32, 32))
    with pytest.raises(InputError, match="traced with 32x32, got 64x64"):
        module(torch.randn(2, 3, 64, 64))


class Grid(nn.Module):
    """Makes tensors where its input lives and of its type, and one that is float32 on purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.o = nn.Linear(8 + 1, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        ramp = torch.linspace(-1, 1, x.shape[1], device=x.device, dtype=x.dtype)
        y = self.a(torch.cat((x, ramp.view(1, -1, 1).expand(len(x), -1, 1)), 2))
        y = y.float().softmax(-1, dtype=torch.float32)
        return self.o(y.to(x.dtype))


def test_types_and_devices_follow():
    net, x = Grid().eval(), torch.randn(2, 5, 8)
    module = trace(net, x).module
    small, own = copy.deepcopy(module).bfloat16(), copy.deepcopy(net).bfloat16()
    assert torch.equal(small(x.bfloat16()), own(x.bfloat16()))
    assert copy.deepcopy(module).to("meta")(x.to("meta")).is_meta
    torch.testing.assert_close(small.float().half().float()(x), net(x), rtol=0.1, atol=0.1)


class C2f(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.b = nn.Conv2d(3, 32, 1), nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(48, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.a(x).chunk(2, 1))
        y.append(self.m(y[-1]).relu())
        return self.b(torch.cat(y, 1))


def _by_magnitude(graph, pieces):
    return allocate(
        graph,
        score_groups(graph, Magnitude(), None),
        Budget(macs=0.6),
        criterion="magnitude",
        normalizer="none",
        step=1,
        constraints=Constraints(pieces=pieces),
    )


@pytest.mark.parametrize("pieces", ["equal", "free"])
def test_equal_pieces_stay_equal(pieces):
    torch.manual_seed(0)
    net = C2f().eval()
    with torch.no_grad():
        net.a.weight[:16] *= 10  # all of the second half would go first
    graph = trace(net, torch.randn(2, 3, 8, 8))
    plan = _by_magnitude(graph, pieces)
    halves = [len(g.keep) for g in plan.groups if g.id.startswith("a.weight:0")]
    assert len(halves) == 2
    assert (len(set(halves)) == 1) == (pieces == "equal")
    if pieces == "equal":
        assert type(plan.apply_to(net)) is C2f


class Attention(nn.Module):
    """Two heads of eight; q and k normed as in large vision transformers."""

    def __init__(self, *, normed: bool) -> None:
        super().__init__()
        self.heads, self.columns = 2, 8
        self.qkv, self.proj = nn.Linear(6, 48), nn.Linear(16, 6)
        self.q_norm, self.k_norm = (nn.LayerNorm(8) if normed else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.columns).permute(2, 0, 3, 1, 4).unbind(0)
        y = nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).reshape(n, t, -1))


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("pieces", ["equal", "free"])
def test_q_k_and_v_of_one_layer_keep_as_many_columns_and_their_class(normed, pieces):
    torch.manual_seed(0)
    net = Attention(normed=normed).eval()
    with torch.no_grad():
        net.qkv.weight[32:] *= 10  # columns of v would all stay
    graph = trace(net, torch.randn(2, 5, 6))
    plan = _by_magnitude(graph, pieces)
    columns = [len(g.keep) for g in plan.groups if g.size == 8]
    assert len(columns) == 2
    assert plan.macs_after / plan.macs_before == pytest.approx(0.5 if pieces == "equal" else 0.6, abs=0.05)
    assert pieces == "free" or columns == [4, 4]  # five of eight would be 62 %
    assert (len(set(columns)) == 1) == (pieces == "equal")
    if pieces == "equal":
        assert type(plan.apply_to(net)) is Attention


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_zero_filters_under_weight_norm_go_first_and_nothing_changes(wrap):
    torch.manual_seed(0)
    net = nn.Sequential(wrap(nn.Conv1d(4, 16, 3)), nn.ReLU(), wrap(nn.Conv1d(16, 8, 3)), nn.Conv1d(8, 3, 3)).eval()
    lengths = dict(net.named_parameters())
    length = lengths.get("0.weight_g", lengths.get("0.parametrizations.weight.original0"))
    with torch.no_grad():
        length[::2], net[0].bias[::2] = 0, 0
    x = torch.randn(2, 4, 12)
    graph = trace(net, x)
    group = next(g for g in graph.groups if g.size == 16)
    score = score_groups(graph, Magnitude(), None)[group.id]
    assert score[::2].max() < score[1::2].min()
    plan = make_plan(graph, {group.id: range(1, 16, 2)}, criterion="given", scope="given", step=1)
    torch.testing.assert_close(remove(graph, plan)(x), net(x), rtol=1e-5, atol=1e-6)
