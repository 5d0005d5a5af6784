"""Models no export can trace: the second front end, the largest part, and what a user is told."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deploypruner as dp
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.errors import TraceError
from deploypruner.graph.capture import front_ends
from deploypruner.graph.capture.from_autograd import trace_autograd
from deploypruner.graph.dependency import Graph, assemble
from tests.nets import conv_bn, make

pytestmark = pytest.mark.slow


class TwoPaths(nn.Module):
    """Either branch, by the sign of the input: an `if` on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = conv_bn(3, 8), conv_bn(8, 12), conv_bn(8, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = self.a(y) if float(x.mean()) > 0 else self.b(y)
        return self.head(y.mean((2, 3)))


class Detector(nn.Module):
    """A backbone with a layer norm, and a head that keeps what is above a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16), nn.LayerNorm(16)
        )
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.head(self.backbone(x))
        kept = [row for row in scores.flatten(0, 1) if row[0].item() > 0]
        return torch.stack([*kept, scores[0, 0]]), scores


class Random(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return y if y.sum().item() > 1e9 else y + torch.rand(1)


def by_autograd(net: nn.Module, x: Tensor) -> Graph:
    traced = trace_autograd(net, (x,))
    return assemble(
        traced.module,
        traced.labelling,
        example_inputs=(x,),
        dynamic_batch=traced.dynamic_batch,
        remarks=traced.remarks,
        front_end="torch-pruning",
        cut=traced.cut,
    )


def groups_of(graph: Graph) -> set[frozenset[tuple[str, int]]]:
    return {frozenset((m.parameter, m.axis) for m in g.members) for g in graph.groups}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["residual", "vgg", "squeeze-excite", "dense"])
def test_both_front_ends_find_the_same_groups_and_macs(name):
    net, x = make(name)
    ours, theirs = dp.trace(net, x), by_autograd(net, x)
    assert theirs.costs.macs() == ours.costs.macs()
    assert theirs.cost().params == ours.cost().params
    assert groups_of(theirs) == groups_of(ours)


@pytest.mark.parametrize("name", ["residual", "vgg", "squeeze-excite", "dense", "branches", "shuffle", "attention"])
def test_whatever_it_offers_passes_the_proof(name):
    net, x = make(name)
    graph = by_autograd(net, x)
    generator = np.random.default_rng(0)
    keep = {g.id: np.sort(generator.permutation(g.size)[: g.size // 2]) for g in graph.groups}
    module, checks = remove_and_prove(graph, make_plan(graph, keep))
    assert all(c.passed for c in checks), checks
    assert type(module) is type(net)


@pytest.mark.parametrize("name", ["option a", "pixel shuffle", "deconv", "einsum", "in place"])
def test_a_group_that_torch_pruning_gets_wrong_is_frozen_with_that_reason(name):
    net, x = make(name)
    traced = trace_autograd(net, (x,))
    reasons = {
        why[0]
        for s in traced.labelling.state.values()
        for labels in s.axes
        for why in traced.labelling.atoms.reasons(labels)
        if why is not None
    }
    assert any("a trial removal of these channels did not compute what masking them does" in r for r in reasons)


def test_a_branch_on_a_value_is_pruned_along_every_path_it_takes():
    net = TwoPaths().eval()
    x = torch.rand(2, 3, 8, 8)
    graph = dp.trace(net, x)
    assert graph.front_end == "torch-pruning"
    assert any("torch.export cannot trace this model" in r and "torch-pruning" in r for r in graph.remarks)
    members = {frozenset(g.members[i].parameter for i in range(len(g.members))) for g in graph.groups}
    assert any({"a.0.weight", "b.0.weight", "head.weight"} <= m for m in members)
    small = dp.remove(graph, make_plan(graph, {g.id: np.arange(g.size // 2) for g in graph.groups}))
    assert isinstance(small, TwoPaths)
    assert small.a[0].weight.shape == (6, 4, 3, 3)
    for sign in (1, -1):
        assert small(sign * torch.rand(3, 3, 8, 8)).shape == (3, 4)


def test_the_users_model_is_as_it_was():
    net = TwoPaths().train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    net.stem[0].weight.requires_grad_(False)
    dp.trace(net, torch.rand(2, 3, 8, 8))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.training
    assert net.a[0].weight.grad is None
    assert not net.stem[0].weight.requires_grad


def test_layers_that_never_ran_are_named():
    class Hidden(TwoPaths):
        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            y = self.a(y) if float(x.sum()) < 1e12 else self.b(y)
            return self.head(y.mean((2, 3)))

    graph = dp.trace(Hidden().eval(), torch.rand(2, 3, 8, 8))
    assert any("2 layers never ran (b.0, b.1): they stay whole" in r for r in graph.remarks)
    assert {f.reason for f in graph.frozen if f.parameter == "b.0.weight"} == {"it did not run on the example inputs"}


def test_a_statistic_over_channels_is_frozen_and_says_so():
    net = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)).eval()
    graph = by_autograd(net, torch.rand(2, 6))
    assert not graph.groups
    assert "removing would change a normalisation statistic" in next(
        f.reason for f in graph.frozen if (f.parameter, f.axis) == ("0.weight", 0)
    )


def test_the_part_that_can_be_exported_is_taken_where_more_of_it_can_be_removed():
    net = Detector().eval()
    x = torch.randn(2, 5, 6)
    graph = dp.trace(net, x)
    assert (graph.front_end, graph.part) == ("torch.export", "backbone")
    assert any("only its part 'backbone' was traced, which holds 96 % of the parameters" in r for r in graph.remarks)
    assert all(m.parameter.startswith("backbone.") for g in graph.groups for m in g.members)
    plan = make_plan(graph, {g.id: np.arange(g.size // 2) for g in graph.groups})
    small = dp.remove(graph, plan)
    assert isinstance(small, Detector)
    assert small.backbone[2].weight.shape == (16, 8)
    assert small.head.weight.shape == (3, 16)
    assert small(torch.randn(3, 4, 6))[1].shape == (3, 4, 3)
    again = plan.apply_to(net)
    torch.testing.assert_close(again(x), small(x))


def test_a_model_no_front_end_can_trace_gets_every_reason_and_one_hint():
    net = Random().eval()
    with pytest.raises(TraceError) as error:
        dp.trace(net, torch.rand(2, 6))
    assert "torch.export cannot trace this model" in error.value.message
    assert "no part of the model" in error.value.message
    assert "gives other outputs every time it is called" in error.value.message
    assert error.value.hint


def test_a_model_that_does_not_run_gets_that_reason_alone():
    with pytest.raises(TraceError) as error:
        dp.trace(TwoPaths().eval(), torch.rand(2, 5, 8, 8))
    assert "torch-pruning" not in error.value.message
    assert "torch.export cannot" not in error.value.message


def test_torch_pruning_is_given_up_when_its_time_is_over():
    net, x = make("vgg")
    with pytest.raises(TraceError, match="torch-pruning does not come to an end on this model"):
        trace_autograd(net, (x,), seconds=-1)


def test_a_model_that_exports_never_meets_the_second_front_end(monkeypatch):
    monkeypatch.setattr(front_ends, "trace_autograd", None)
    net, x = make("residual")
    assert dp.trace(net, x).front_end == "torch.export"


class ListDetector(nn.Module):
    """Takes a list of images of different sizes, as torchvision's detectors do, and returns a dict for each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv_bn(3, 12), nn.ReLU(), conv_bn(12, 16), nn.ReLU())
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        batch = torch.stack([nn.functional.interpolate(image[None], (8, 8))[0] for image in images])
        found = self.head(self.body(batch))
        return [{"boxes": one[:4, one[4] > 0]} for one in found]


def test_a_list_of_images_is_no_batch_and_the_backbone_of_a_detector_is_pruned_inside_it():
    model, images = ListDetector().eval(), [torch.randn(3, 9, 11), torch.randn(3, 12, 8)]
    result = dp.prune(model, (images,), macs=0.5, step=1)
    assert result.graph.part == "body"
    assert "the size of a tensor depends on the values of another" in result.graph.remarks[0]
    assert type(result.module) is ListDetector
    assert [d["boxes"].shape[0] for d in result.module(images)] == [4, 4]
    assert result.plan.macs_after <= 0.5 * result.plan.macs_before
