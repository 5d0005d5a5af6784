"""Residual branches: which are found, that masked equals removed, and what is left of the user's class."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.channels.depth import floors, held_branches
from deploypruner.channels.plan import Plan, make_plan
from deploypruner.channels.proof.removal import prove
from deploypruner.errors import PlanError, RecipeError
from deploypruner.graph import trace
from deploypruner.graph.capture.observe import Products
from deploypruner.graph.rewrite.branch_stand_ins import Dropped
from deploypruner.recipe.constraints import Constraints, LayerConstraint
from tests.nets import NETS, conv_bn, make

pytestmark = pytest.mark.slow

GONE = np.empty(0, np.int64)
IMAGE = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(3))


class Basic(nn.Module):
    """Two convolutions, added in place, and a relu that also writes in place."""

    def __init__(self, width: int = 8, inner: int = 6) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += x
        return self.relu(y)


class PreNorm(nn.Module):
    """A transformer block: attention and an MLP, each with a scale of its own and stochastic depth."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.gamma = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attn(self.norm1(x)), 0.1, self.training)
        return x + self.gamma * self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class PostNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.f, self.norm = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.f(x))


class Parallel(nn.Module):
    """x + f(x) + g(x): the second addition's shortcut is a sum that holds x."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x) + self.g(x)


class Inverted(nn.Module):
    """Expand, depthwise, squeeze-and-excitation, project."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depth = conv_bn(8, 24, 1), conv_bn(24, 24, 3, groups=24)
        self.down, self.up = nn.Conv2d(24, 4, 1), nn.Conv2d(4, 24, 1)
        self.project = nn.Sequential(nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8))

    def forward(self, x: Tensor) -> Tensor:
        y = self.depth(self.expand(x))
        y = y * self.up(self.down(y.mean((2, 3), keepdim=True)).relu()).sigmoid()
        return x + self.project(y)


class Transition(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.shortcut = conv_bn(8, 8), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.shortcut(x)


class Writing(nn.Module):
    """The branch changes what the shortcut carries, through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 2
        flat = x.view(x.shape[0], -1)
        flat.mul_(0.5)
        return x + self.conv(flat.view_as(x))


class UNet(nn.Module):
    """The way up is added to another tensor than the one it came from."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up = conv_bn(8, 8), conv_bn(8, 8), conv_bn(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.first[0](x) + self.up(self.down(first))


class Outer(nn.Module):
    """A branch around another: only the inner one counts."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner, self.after = nn.Linear(8, 8), Parallel(), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.after(self.inner(self.before(x)))


class Twice(nn.Module):
    """One block used at two places: its parameters cannot go from one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.f(x)
        return x + self.f(x)


def body(*blocks: nn.Module, image: bool = True) -> nn.Sequential:
    """Blocks between two layers, so that their channels are nobody's input or output."""
    if image:
        return nn.Sequential(conv_bn(8, 8), *blocks, nn.Conv2d(8, 3, 1)).eval()
    return nn.Sequential(nn.Linear(8, 8), *blocks, nn.Linear(8, 3)).eval()


CASES: dict[str, tuple[nn.Module, Tensor, list[str]]] = {
    "basic": (body(Basic(), Basic()), IMAGE, ["1", "2"]),
    "inverted": (body(Inverted()), IMAGE, ["1"]),
    "pre-norm": (
        body(PreNorm(), PreNorm(), image=False),
        torch.randn(2, 5, 8),
        ["1.attn", "1.mlp", "2.attn", "2.mlp"],
    ),
    "post-norm": (body(PostNorm(), image=False), torch.randn(2, 5, 8), ["1.f"]),
    "parallel": (body(Parallel(), image=False), torch.randn(2, 8), ["1.f", "1.g"]),
    "outer": (body(Outer(), image=False), torch.randn(2, 8), ["1.inner.f", "1.inner.g"]),
    "transition": (body(Transition()), IMAGE, []),
    "writing": (body(Writing()), IMAGE, []),
    "u-net": (body(UNet()), IMAGE, []),
    "twice": (body(Twice(), image=False), torch.randn(2, 8), []),
}
WITH = [name for name, case in CASES.items() if case[2]]


def traced(name: str):
    torch.manual_seed(0)
    net, x, _ = CASES[name]
    for module in net.modules():  # batch norms that do something
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    return trace(net, x)


@pytest.mark.parametrize("name", CASES)
def test_the_branches_of_a_network_are_those_whose_removal_leaves_the_identity(name):
    assert [branch.id for branch in traced(name).branches] == CASES[name][2]


@pytest.mark.parametrize("name", WITH)
def test_a_branch_masked_is_a_branch_removed_and_is_counted(name):
    graph, rng = traced(name), np.random.default_rng(0)
    for _ in range(4):
        keep = {b.id: GONE for b in graph.branches if rng.random() < 0.6}
        keep |= {g.id: np.arange(max(1, g.size // 2)) for g in graph.groups if rng.random() < 0.4}
        if graph.emptied({k: v for k, v in keep.items() if ":" in k}):
            continue
        plan = make_plan(graph, keep)
        module = graph.cut(graph.removed(plan.keep)).eval()
        assert all(check.passed for check in prove(graph, plan, module))
        assert sum(p.numel() for p in module.parameters()) == plan.params_after
        with Products() as products, torch.no_grad():
            module(*graph.example_inputs)
        assert sum(p.macs for p in products.found) // 2 in (plan.macs_after, 0)


@pytest.mark.parametrize("name", [n for n in NETS if n not in ("unsupported", "in place")])
def test_every_network_without_all_its_branches_is_proved(name):
    net, x = make(name)
    graph = trace(net, x)
    plan = make_plan(graph, {branch.id: GONE for branch in graph.branches})
    assert all(check.passed for check in prove(graph, plan, graph.cut(graph.removed(plan.keep)).eval()))


def test_the_numbers_of_a_branch_by_hand():
    first, second = traced("basic").branches
    layers = 2 * 3 * 3 * 8 * 6
    assert first.macs == second.macs == layers * 36
    assert first.params == layers + 2 * 6 + 2 * 8
    assert first.groups == ("1.conv1.weight:0",)
    assert "1.bn2.running_var" in first.parameters


def test_a_second_relu_goes_with_the_branch_between_them_and_nothing_is_left_of_it():
    graph = traced("basic")
    module = graph.cut(graph.removed({"1": GONE, "2": GONE}))
    calls = [str(n.target) for n in module.graph.nodes if n.op == "call_function"]
    assert [c for c in calls if "relu" in c] == ["aten.relu.default"]
    assert not [c for c in calls if "add" in c]
    assert not any(name.startswith(("1.", "2.")) for name in module.state_dict())


def test_a_shortcut_that_others_read_is_not_written_into():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.f, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            y = F.hardswish(x + self.f(x), inplace=True)
            return self.head(torch.cat([x, y], dim=-1))

    graph = trace(Net().eval(), torch.randn(2, 8))
    plan = make_plan(graph, {"f": GONE})
    assert all(check.passed for check in prove(graph, plan, graph.cut(graph.removed(plan.keep)).eval()))


# ---------------------------------------------------------------------- plans


def test_a_plan_with_branches_survives_json_and_one_of_the_former_format_has_none():
    graph = traced("basic")
    plan = make_plan(graph, {"2": GONE, "1.conv1.weight:0": [1, 4]})
    assert plan.dropped == ("2",)
    assert Plan.from_json(plan.to_json()) == plan
    former = {k: v for k, v in plan.to_json().items() if k != "dropped"} | {"format": 2}
    assert Plan.from_json(former).dropped == ()


def test_what_is_kept_inside_a_branch_that_goes_does_not_matter():
    graph = traced("basic")
    assert make_plan(graph, {"1": GONE, "1.conv1.weight:0": [0]}) == make_plan(graph, {"1": GONE})


def test_a_branch_of_another_model_is_refused_by_name():
    plan = make_plan(traced("basic"), {"2": GONE})
    other = trace(body(Basic()), IMAGE)
    with pytest.raises(PlanError, match=r"'2\.conv1\.weight' is one in the plan only"):
        plan.check(other)
    with pytest.raises(PlanError, match=r"no group or branch 'layer9'"):
        make_plan(other, {"layer9": GONE})


# ---------------------------------------------------------------------- the user's class


def test_a_block_without_its_branch_is_the_identity_in_the_users_class():
    net = copy.deepcopy(CASES["basic"][0])
    small = make_plan(trace(net, IMAGE), {"2": GONE}).apply_to(net)
    assert isinstance(small[2], nn.Identity)
    assert type(small[1]) is Basic
    assert isinstance(net[2], Basic)


def test_of_two_branches_the_one_that_goes_gives_zero_and_the_other_stays():
    net, x, _ = CASES["pre-norm"]
    graph = trace(net, x)
    small = make_plan(graph, {"1.attn": GONE, "2.attn": GONE, "2.mlp": GONE}).apply_to(net)
    assert isinstance(small[1].attn, Dropped)
    assert type(small[1].mlp) is nn.Sequential
    assert isinstance(small[2], nn.Identity)
    expected = graph.cut(graph.removed({"1.attn": GONE, "2.attn": GONE, "2.mlp": GONE})).eval()
    torch.testing.assert_close(small(x), expected(x))


# ---------------------------------------------------------------------- what the user wants left alone


def test_excluded_and_limited_branches_stay_and_say_why():
    graph = traced("basic")
    found = held_branches(graph, Constraints(exclude=("1.conv2",), layers=(LayerConstraint("2.*", max_cut=0.5),)))
    assert found == {"1": "excluded by '1.conv2'", "2": "limited by '2.*'"}
    assert held_branches(graph, Constraints()) == {"1": "", "2": ""}
    assert set(held_branches(graph, Constraints(depth="keep")).values()) == {"--depth keep"}
    with pytest.raises(RecipeError, match=r"--depth cannot be 'deep'[\s\S]*did you mean 'keep'"):
        Constraints(depth="deep")


def test_floors_keep_the_stem_the_classes_and_a_quarter():
    net = nn.Sequential(
        *(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 21, 3), nn.ReLU(), nn.Conv2d(21, 16, 3)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    ).eval()
    graph = trace(net, torch.randn(2, 3, 12, 12))
    assert floors(graph) == {"0.weight:0": 12, "2.weight:0": 6, "4.weight:0": 10}
