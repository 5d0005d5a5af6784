"""The pruned model in the user's own class: what changes in it, what stays, and when it is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

import deploypruner as dp
from deploypruner.build.restore import restore
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.errors import PlanError
from deploypruner.graph.rewrite.resize import owned_copy, structural_copy
from tests.nets import conv_bn, make

pytestmark = pytest.mark.slow


class Sized(nn.Module):
    """Sizes in attributes: a number of heads, a width, and the widths of a split; the scale is left to torch."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.pieces = 2, 8, (12, 4)
        self.embed, self.qkv, self.out = nn.Linear(6, 12), nn.Linear(12, 48), nn.Linear(16, 12)
        self.wide, self.left, self.head = nn.Linear(12, 16), nn.Linear(12, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, self.width).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], self.heads * self.width)
        a, b = self.wide(x + self.out(y)).split(self.pieces, -1)
        return self.head(self.left(a.relu()) + b)


class Literal(nn.Module):
    """A size written into the code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x)[..., :4], self.a(x)[..., 4:]
        return self.o(self.b(left + right).relu())


class Auxiliary(nn.Module):
    """A second head that only training sees."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = self.a(x).relu()
        return (self.b(y), self.aux(y)) if self.training else self.b(y)


class Scaled(nn.Module):
    """Divides by a constant in training only, behind a dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.strength = nn.Linear(6, 8), nn.Linear(8, 2), 8

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        return self.b(F.dropout(y, 0.1) / self.strength if self.training else y)


def half(graph: dp.Graph, *, secondary: bool = False) -> Plan:
    generator = np.random.default_rng(0)
    groups = [g for g in graph.groups if secondary or not g.secondary]
    return make_plan(graph, {g.id: np.sort(generator.permutation(g.size)[: g.size // 2]) for g in groups})


def pruned(net: nn.Module, x: Tensor) -> tuple[nn.Module, nn.Module, Plan]:
    """The graph, the user's class, the plan."""
    graph = dp.trace(net, x)
    plan = half(graph)
    return dp.remove(graph, plan), plan.apply_to(net), plan


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["residual", "vgg", "squeeze-excite", "dense", "pixel shuffle", "deconv", "tied"])
def test_the_own_class_computes_what_the_graph_computes(name):
    net, x = make(name)
    graph, own, _ = pruned(net, x)
    assert type(own) is type(net)
    torch.testing.assert_close(own(x), graph(x))
    assert sum(p.numel() for p in own.parameters()) == sum(p.numel() for p in graph.parameters())


def test_layers_know_their_new_sizes():
    net = nn.Sequential(
        *conv_bn(3, 8), nn.Conv2d(8, 8, 3, groups=8), nn.PReLU(8), nn.Flatten(), nn.LazyLinear(4)
    ).eval()
    x = torch.rand(2, 3, 6, 6)
    net(x)
    _, own, _ = pruned(net, x)
    assert (own[0].in_channels, own[0].out_channels, own[1].num_features) == (3, 4, 4)
    assert (own[3].in_channels, own[3].out_channels, own[3].groups) == (4, 4, 4)
    assert own[4].num_parameters == 4
    assert own[6].in_features == own[6].weight.shape[1] == 4 * 16


def test_attributes_that_hold_sizes_follow_and_the_attention_scale_stays():
    net = Sized().eval()
    graph, own, _ = pruned(net, torch.randn(2, 5, 6))
    x = torch.randn(3, 5, 6)
    torch.testing.assert_close(own(x), graph(x))
    assert own.heads == 2
    assert (own.width, net.width) == (4, 8)
    assert own.pieces == (6, 2)


def test_a_size_written_into_the_code_is_refused_with_what_it_leads_to():
    net = Literal().eval()
    graph = dp.trace(net, torch.randn(2, 6))
    with pytest.raises(PlanError, match="Literal cannot take the sizes of this plan: ") as error:
        half(graph).apply_to(net)
    assert "dp.remove" in error.value.hint


def test_a_head_that_only_training_sees_is_cut_with_the_rest():
    net, x = Auxiliary().eval(), torch.randn(2, 6)
    graph, own, _ = pruned(net, x)
    assert own.aux.weight.shape == (2, 4)
    torch.testing.assert_close(own.train()(x), graph.train()(x))


def test_an_attribute_that_only_a_random_training_sees_is_not_changed_without_a_word():
    """Its value is that of a width by chance; dropout hid what came of reading it as one."""
    net = Scaled().eval()
    graph = dp.trace(net, torch.randn(2, 6))
    assert not graph.trains_differently
    with pytest.raises(PlanError, match="in training mode outputs are off"):
        half(graph).apply_to(net)


def test_modes_hooks_flags_and_ties_stay_and_the_model_is_not_touched():
    net, x = make("tied")
    net.train()
    net.b.eval()
    net.a.weight.requires_grad_(False)
    net.a.register_forward_hook(lambda m, i, o: o * 1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    own = half(dp.trace(net, x)).apply_to(net)
    assert own.c.weight is own.b.weight
    assert [m.training for m in own.modules()] == [m.training for m in net.modules()]
    assert (own.a.weight.requires_grad, own.b.weight.requires_grad) == (False, True)
    assert len(own.a._forward_hooks) == 1
    assert hasattr(own.d, "parametrizations")
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    shared = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert not shared & {t.untyped_storage().data_ptr() for t in own.state_dict().values()}


def test_a_structural_copy_shares_every_tensor_and_an_owned_one_none():
    net, _ = make("tied")
    net.cache = net.a.weight * 2  # deepcopy refuses tensors with a history
    same, own = structural_copy(net), owned_copy(net)
    assert same.a.weight is net.a.weight
    assert own.a.weight is not net.a.weight
    assert own.c.weight is own.b.weight
    assert torch.equal(own.g, net.g)


def test_restore_gives_the_own_class_with_the_saved_weights_or_the_graph(saved):
    net, x, folder, small = saved("residual")
    fresh = type(net)()
    own = restore(fresh, folder)
    assert type(own) is type(net)
    assert not own.training
    torch.testing.assert_close(own(x), small(x))
    assert isinstance(restore(fresh, folder, as_graph=True), torch.fx.GraphModule)


def test_restore_gives_the_graph_where_the_class_does_not_fit(saved):
    net, x, folder, small = saved("shuffle")
    again = restore(type(net)(), folder)
    assert isinstance(again, torch.fx.GraphModule)
    torch.testing.assert_close(again(x), small(x))


@pytest.fixture
def saved(tmp_path):
    """Name of a net -> it, inputs, and a folder with a plan and the pruned weights."""

    def make_folder(name):
        net, x = make(name)
        graph = dp.trace(net, x)
        plan = half(graph)
        small = dp.remove(graph, plan)
        (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
        save_file(
            {k: v.contiguous().clone() for k, v in small.state_dict().items()}, tmp_path / "weights.safetensors"
        )
        return net, x, tmp_path, small

    return make_folder
