"""Gates sit where channels leave: a closed one is a removed channel, and its gradient is dL/dz."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from deploypruner.channels.learned import closed
from deploypruner.channels.plan import make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import Graph, trace
from deploypruner.graph.execute.gates import gated
from deploypruner.graph.execute.parameter_override import holding
from tests.nets import NETS, conv_bn, make

pytestmark = pytest.mark.slow

# Where a gate on what writes a channel is not its removal: statistics over channels and a softmax see the zeros.
ELSEWHERE = {"attention", "einsum", "unsupported", "in place"}


def parameters(graph: Graph) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in graph.module.named_parameters(remove_duplicate=False)}


def inputs_of(name: str) -> Tensor:
    return torch.randn(3, *NETS[name][1][1:], generator=torch.Generator().manual_seed(5))


def halves(graph: Graph) -> dict[str, np.ndarray]:
    """Every other channel of every group that nothing but itself depends on."""
    free = [g for g in graph.groups if not g.partners and not g.changes_statistics and g.size > 1]
    keep = {g.id: np.arange(0, g.size, 2) for g in free}
    return keep if not graph.emptied(keep) else {}


@pytest.mark.parametrize("name", sorted(set(NETS) - ELSEWHERE))
def test_what_is_closed_is_removed(name):
    graph = trace(*make(name))
    keep, x = halves(graph), inputs_of(name)
    weights = parameters(graph)
    removed = graph.cut(graph.removed(keep)).eval()
    closed_output = functional_call(graph.module, closed(graph, weights, keep), (x,))
    torch.testing.assert_close(closed_output, removed(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["residual", "option a", "vgg", "squeeze-excite", "dense", "branches", "shuffle"])
def test_a_gate_of_zero_where_channels_leave_is_removal(name):
    """All activations of these networks map 0 to 0, so nothing but the gates is needed."""
    graph = trace(*make(name))
    keep, x = halves(graph), inputs_of(name)
    assert keep or name == "shuffle"
    gates = {g: torch.zeros(graph.group(g).size).index_fill(0, torch.as_tensor(k), 1) for g, k in keep.items()}
    output = functional_call(graph.module, gated(graph, parameters(graph), gates), (x,))
    torch.testing.assert_close(output, graph.cut(graph.removed(keep)).eval()(x), atol=1e-5, rtol=1e-5)


def test_a_shortcut_without_a_norm_has_its_own_gate_and_a_norm_before_a_depthwise_layer_has_none():
    residual, mobile = trace(*make("residual")), trace(*make("squeeze-excite"))
    where = {g.id: [a.weight for a in residual.last_affines(g)] for g in residual.groups}
    assert where["b.0.weight:0"] == ["b.1.weight", "project.weight"]
    where = {g.id: [a.weight for a in mobile.last_affines(g)] for g in mobile.groups}
    assert where["expand.0.weight:0"] == ["depthwise.1.weight"]
    assert where["stem.0.weight:0"] == ["stem.1.weight", "project.weight"]


def test_the_gradient_of_a_gate_after_batch_norm_is_what_gamma_and_beta_say():
    """papers.md 0.2: dL/dz = gamma dL/dgamma + beta dL/dbeta, summed over the norms of a residual stream."""
    graph = trace(*make("residual"))
    x, labels = inputs_of("residual"), torch.tensor([0, 1, 2])
    group = graph.group("stem.0.weight:0")
    weights = {n: p.clone().requires_grad_() for n, p in parameters(graph).items()}
    gate = torch.ones(group.size, requires_grad=True)
    loss = F.cross_entropy(
        functional_call(graph.module, {**weights, **gated(graph, weights, {group.id: gate})}, (x,)), labels
    )
    loss.backward()
    norms = [a.weight.removesuffix(".weight") for a in graph.last_affines(group)]
    assert norms == ["stem.1", "a.1"]
    wanted = sum(weights[f"{n}.{p}"] * weights[f"{n}.{p}"].grad for n in norms for p in ("weight", "bias"))
    torch.testing.assert_close(gate.grad, wanted.detach(), atol=1e-6, rtol=1e-4)


def test_a_mask_on_filters_before_batch_norm_does_nothing_in_training_and_one_after_it_does():
    """papers.md 0.1: BN(m W x) = BN(W x) up to epsilon; so gates are on gamma and beta."""
    net = nn.Sequential(*conv_bn(3, 8), nn.Conv2d(8, 4, 1)).double().train()
    net[1].eps = 1e-12
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = functional_call(net, {"0.weight": 0.5 * net[0].weight}, (x,))
    after = functional_call(net, {"1.weight": 0.5 * net[1].weight, "1.bias": 0.5 * net[1].bias}, (x,))
    torch.testing.assert_close(before, net(x), atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(after - net[3].bias[:, None, None], 0.5 * (net(x) - net[3].bias[:, None, None]))


def test_masks_of_grouped_positions_and_of_overlapping_groups_multiply():
    graph = trace(*make("vgg"))
    group = graph.group("a.0.weight:0")
    gate = torch.linspace(0, 1, group.size)
    masked = gated(graph, dict(graph.module.named_parameters()), {group.id: gate})
    assert set(masked) == {"a.1.weight", "a.1.bias"}
    torch.testing.assert_close(masked["a.1.weight"], graph.module.get_parameter("a.1.weight") * gate)


def test_a_removal_of_learned_weights_is_proved_and_the_graph_gets_its_own_back():
    model, x = make("residual")
    graph = trace(model, x)
    before = {n: p.detach().clone() for n, p in model.state_dict().items()}
    learned = {n: p.detach() * 1.5 for n, p in graph.module.named_parameters()}
    plan = make_plan(graph, halves(graph))
    with holding(graph, learned):
        module, checks = remove_and_prove(graph, plan)
        assert torch.equal(graph.module.get_parameter("head.bias"), before["head.bias"] * 1.5)
    assert all(check.passed for check in checks)
    assert torch.equal(module.get_parameter("head.bias"), before["head.bias"] * 1.5)
    for state in (model.state_dict(), graph.module.state_dict()):
        assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_a_graph_gets_its_weights_back_from_a_block_that_fails():
    graph = trace(*make("vgg"))
    before = graph.module.get_parameter("o.bias").detach().clone()
    with pytest.raises(KeyboardInterrupt), holding(graph, {"o.bias": before + 1}):
        raise KeyboardInterrupt
    assert torch.equal(graph.module.get_parameter("o.bias"), before)
