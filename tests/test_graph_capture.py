"""From a model to its graph: nothing of the user's changes, weights are shared, and every failure is named."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import Linear as QuantizedLinear
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from deploypruner.channels.remove import remove_and_prove
from deploypruner.errors import DeployPrunerError, InputError, TraceError
from deploypruner.graph import trace
from deploypruner.graph.capture.from_model import _Capturing, capture
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import tensors
from tests.nets import NETS, make
from tests.test_graph_laws import random_plan

pytestmark = pytest.mark.slow


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def snapshot(net: nn.Module) -> dict[str, object]:
    """Everything about a module that a trace could change."""
    found: dict[str, object] = {}
    for name, tensor in [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]:
        grad = None if tensor.grad is None else tensor.grad.tolist()
        found[name] = (id(tensor), tensor.data_ptr(), tensor.tolist(), tensor.requires_grad, grad, tensor._version)
    for name, module in net.named_modules():
        hooks = [len(h) for h in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)]
        found[f"{name}!"] = (module.training, hooks, sorted(vars(module)))
    return found


def busy_net() -> tuple[nn.Module, Tensor]:
    """In training mode, half of it frozen, with gradients and a hook."""
    net, x = make("residual")
    net.train()
    net.a.eval()
    net(x).sum().backward()
    net.stem[0].weight.requires_grad_(False)
    net.head.register_forward_hook(lambda module, args, output: None)
    return net, x


def test_a_trace_leaves_every_bit_flag_mode_hook_and_gradient():
    net, x = busy_net()
    before, state = snapshot(net), torch.get_rng_state()
    graph = trace(net, x)
    remove_and_prove(graph, random_plan(graph, 0))
    assert snapshot(net) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_graph_shares_the_weights_and_owns_its_buffers():
    net, x = busy_net()
    module = trace(net, x).module
    mine = dict(net.named_parameters())
    theirs = dict(module.named_parameters())
    assert mine.keys() == theirs.keys()
    for name, parameter in theirs.items():
        assert parameter is not mine[name]
        assert parameter.data_ptr() == mine[name].data_ptr()
        assert parameter.grad is None
        assert parameter.requires_grad == mine[name].requires_grad
    buffers = dict(net.named_buffers())
    assert all(b.data_ptr() != buffers[name].data_ptr() for name, b in module.named_buffers())


def test_training_a_pruned_module_leaves_the_users_model_alone():
    net, x = make("residual")
    graph = trace(net, x)
    module, _ = remove_and_prove(graph, random_plan(graph, 0))
    before = snapshot(net)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(x).sum().backward()
    optimizer.step()
    assert snapshot(net) == before


class Merging(nn.Module):
    """An adapter that is added to the weight, in place, on the way to evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.extra = nn.Parameter(torch.randn(8, 12)), nn.Parameter(torch.randn(8, 12))
        self.merged = False

    def train(self, mode: bool = True):
        if mode == self.merged:
            self.weight.data += -self.extra if mode else self.extra
            self.merged = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight if self.merged else self.weight + self.extra)


def test_an_adapter_that_merges_itself_is_merged_in_the_copy_only():
    net, x = seeded(lambda: (nn.Sequential(Merging(), nn.Linear(8, 5)), torch.randn(2, 12)))
    before = snapshot(net)
    graph = trace(net, x)
    assert snapshot(net) == before
    torch.testing.assert_close(graph.module(x), net(x))


class Caching(nn.Module):
    """Keeps a tensor that autograd made, as LeViT keeps its attention bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.scale = nn.Linear(12, 8), nn.Parameter(torch.ones(8))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True):
        if mode:
            self.cache = {}
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and "scale" not in self.cache:
            self.cache["scale"] = self.scale * 2
        return self.a(x) * (self.scale * 2 if self.training else self.cache["scale"])


def test_a_cache_is_dropped_in_the_copy_and_kept_in_the_model():
    net, x = seeded(lambda: (Caching().eval(), torch.randn(2, 12)))
    net(x)
    kept = net.cache["scale"]
    graph = trace(net, x)
    assert net.cache["scale"] is kept
    assert {"a.weight", "a.bias", "scale"} == {name for name, _ in graph.module.named_parameters()}


class Stateful(nn.Module):
    """Tied weights, a parametrization, kept and unkept buffers, and a constant made in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 12), nn.Linear(12, 9, bias=False)
        self.out.weight = self.table.weight
        self.middle = parametrizations.weight_norm(nn.Linear(12, 12))
        self.register_buffer("kept", torch.rand(12) + 0.5)
        self.register_buffer("unkept", torch.rand(12) + 0.5, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.table(x) * self.kept) * self.unkept
        return self.out(y + torch.tensor([0.5]))


def test_state_keeps_its_names_and_its_sharing():
    net = seeded(lambda: Stateful().eval())
    x = torch.tensor([[1, 2], [3, 4]])
    module = trace(net, x).module
    parameters = dict(module.named_parameters(remove_duplicate=False))
    assert parameters.keys() == dict(net.named_parameters(remove_duplicate=False)).keys()
    assert parameters["out.weight"] is parameters["table.weight"]
    assert {"kept", "unkept"} <= {name for name, _ in module.named_buffers()}
    torch.testing.assert_close(module(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_traced_in_their_own(dtype):
    net, x = make("squeeze-excite")
    net, x = net.to(dtype), x.to(dtype)
    graph = trace(net, x)
    assert graph.check.passed
    assert str(dtype).removeprefix("torch.") in graph.check.name
    assert {p.dtype for p in graph.module.parameters()} == {dtype}
    module, _ = remove_and_prove(graph, random_plan(graph, 0))
    assert module(x).dtype == dtype


class Regular(nn.Module):
    """Batch norm, dropout, and dropout inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.drop = nn.BatchNorm1d(7), nn.Linear(12, 48), nn.Dropout(0.4)
        self.attention_dropout, self.o = 0.3, nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        p = self.attention_dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p)
        return self.o(self.drop(y.transpose(1, 2).flatten(2)).relu())


def test_training_draws_the_same_masks_and_gives_the_same_gradients_and_statistics():
    net, x = seeded(lambda: (Regular(), torch.randn(4, 7, 12)))
    graph = trace(net, x)
    assert not graph.remarks
    pruned, _ = remove_and_prove(graph, random_plan(graph, 0))
    assert pruned.train()(x).shape == (4, 7, 5)
    for traced in (graph.module, copy.deepcopy(graph.module)):
        own = copy.deepcopy(net)
        for mode in (True, False, True):
            own.train(mode), traced.train(mode)
            own.zero_grad(), traced.zero_grad()
            wanted, got = (seeded(lambda m=m: m(x)) for m in (own, traced))
            torch.testing.assert_close(got, wanted)
            wanted.square().sum().backward()
            got.square().sum().backward()
        for mine, theirs in zip(own.parameters(), traced.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, mine.grad)
        for name, buffer in traced.named_buffers():
            torch.testing.assert_close(buffer, dict(own.named_buffers())[name])


def test_a_pruned_models_attention_keeps_its_dropout():
    net, x = seeded(lambda: (Regular(), torch.randn(4, 7, 12)))
    graph = trace(net, x)
    module, _ = remove_and_prove(graph, random_plan(graph, 0))
    module.train()
    calls = [n for n in module.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert [n.kwargs.get("dropout_p", n.args[4] if len(n.args) > 4 else None) for n in calls] == [0.3]


@pytest.mark.parametrize("name", ["residual", "attention", "tied"])
def test_the_traced_graph_is_checked_against_the_model(name):
    net, x = make(name)
    captured = capture(net, (x,))
    assert captured.check.passed
    assert captured.check.name == "traced graph = model (float32)"
    assert trace(net, x).check == captured.check


def test_one_sample_is_repeated_and_many_are_cut():
    net, x = make("residual")
    for given in (x[:1], x, torch.cat([x, x, x])):
        captured = capture(net, (given,))
        assert captured.dynamic_batch
        assert [len(t) for t in tensors(captured.example_inputs)] == [2]


def test_a_program_shares_its_weights_and_stays_as_it_is():
    net, x = make("residual")
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False)
    before = {name: (id(t), t.tolist()) for name, t in program.state_dict.items()}
    nodes = len(program.graph.nodes)
    module = trace(program, x).module
    module.train()
    module(x)
    assert {name: (id(t), t.tolist()) for name, t in program.state_dict.items()} == before
    assert len(program.graph.nodes) == nodes
    shared = dict(module.named_parameters())["stem.0.weight"]
    assert shared.data_ptr() == program.state_dict["stem.0.weight"].data_ptr()
    assert shared is not program.state_dict["stem.0.weight"]


def test_a_sharing_copy_is_in_evaluation_mode_and_tied_as_the_original():
    net = Stateful().train()
    copied = sharing_copy(net)
    assert not any(module.training for module in copied.modules())
    assert copied.out.weight is copied.table.weight
    assert copied.out.weight.data_ptr() == net.out.weight.data_ptr()
    assert copied.kept.data_ptr() != net.kept.data_ptr()


# ------------------------------------------------------------------------------------------------- bad input


class Raising(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        raise KeyError("no such setting")
        return y


class Returning(nn.Module):
    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> object:
        return self.value


def quantized() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), QuantizedLinear(4, 5))


def masked() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4))
    prune.random_unstructured(net[0], "weight", 0.5)
    return net


def int8() -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4))
    net[0].weight = nn.Parameter(torch.zeros(4, 3, dtype=torch.int8), requires_grad=False)
    return net


def broken(value: float) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        net[0].weight[1, 1] = value
    return net


BAD_MODELS = [
    (lambda: lambda x: x, r"a function was given, not a model"),
    (lambda: torch.jit.trace(nn.Linear(3, 4), torch.zeros(2, 3)), r"is a TorchScript module"),
    (quantized, r"layer '1' \(Linear\) is already quantized"),
    (int8, r"'0\.weight' is int8: the model is already quantized"),
    (masked, r"'0\.weight_orig' is masked[\s\S]*hint: .*prune\.remove\(module, 'weight'\)"),
    (lambda: broken(float("nan")), r"'0\.weight' holds 1 NaN or Inf among its 12 elements"),
    (lambda: broken(float("inf")), r"'0\.weight' holds 1 NaN or Inf among its 12 elements"),
    (lambda: nn.Linear(3, 4, device="meta"), r"'weight' is on the meta device"),
    (lambda: nn.LazyLinear(4), r"'weight' has no shape yet"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model", "said"), BAD_MODELS)
def test_a_model_that_cannot_be_pruned_is_named_with_a_hint(model, said):
    with pytest.raises(InputError, match=said) as caught:
        trace(model(), torch.randn(2, 3))
    assert caught.value.hint


def test_what_a_model_raises_is_passed_on_with_its_line():
    with pytest.raises(
        TraceError, match=r"does not run on .*\[2, 3\].*KeyError: 'no such setting' \(at .*\.py:\d+\)"
    ):
        trace(Raising(), torch.randn(2, 3))


@pytest.mark.parametrize("value", [3, None, "text", {"loss": 0.5}])
def test_an_output_without_a_tensor_is_named(value):
    with pytest.raises(TraceError, match=f"returned {type(value).__name__}, which holds no tensor"):
        trace(Returning(value), torch.randn(2, 3))


@pytest.mark.parametrize(
    ("net", "x", "said"),
    [
        (nn.Embedding(5, 4), torch.rand(2, 3), r"\[2, 3\] float32.*[\s\S]*hint: .*[Ii]ntegers where indices|indices"),
        (nn.Linear(3, 4), torch.rand(2, 3).double(), r"hint: the weights are float32 and an input is float64"),
        (nn.Linear(3, 4), torch.empty(2, 3, device="meta"), r"hint: the model is on cpu and an input on meta"),
        (nn.Conv2d(3, 4, 3), torch.rand(2, 5, 8, 8), r"\[2, 5, 8, 8\]"),
    ],
)
def test_inputs_that_do_not_fit_are_explained(net, x, said):
    with pytest.raises(DeployPrunerError, match=said):
        trace(net, x)


class DropPath(nn.Module):
    """Drops samples in training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1) < 0.5) / 0.5


@pytest.mark.parametrize("samples", [1, 2])
def test_stochastic_depth_is_captured_the_fast_way(samples):
    net = seeded(lambda: nn.Sequential(nn.Linear(3, 8), DropPath(), nn.Linear(8, 4))).eval()
    assert _Capturing(net, (torch.ones(samples, 3),)).marked()[1].passed


def test_data_dependent_control_flow_says_where():
    class Branching(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        TraceError, match=r"torch\.export cannot trace this model: .* \(at .*test_graph_capture\.py:\d+\)"
    ):
        capture(Branching(), (torch.ones(2, 3),))


def test_a_model_that_is_random_in_evaluation_says_so():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + random.random()

    with pytest.raises(TraceError, match="random in evaluation mode"):
        capture(Noisy(), (torch.ones(2, 3),))


def test_dropout_that_is_always_on_is_no_disagreement():
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(self.a(x), 0.5, training=True)

    captured = capture(Always().eval(), (torch.ones(2, 3),))
    assert captured.check.passed
    assert captured.dynamic_batch
    for module in (captured.module.eval(), captured.module.train()):
        assert (module(torch.ones(20, 3)) == 0).any()


@pytest.mark.parametrize("name", NETS)
def test_every_small_network_is_captured_the_fast_way(name):
    net, x = make(name)
    assert _Capturing(net, (x,)).marked()[1].passed


def test_tied_weights_are_cut_under_all_their_names():
    net = seeded(lambda: Stateful().eval())
    graph = trace(net, torch.tensor([[1, 2], [3, 4]]))
    module, checks = remove_and_prove(graph, random_plan(graph, 0))
    assert all(check.passed for check in checks)
    state = dict(module.named_parameters(remove_duplicate=False))
    assert state["out.weight"] is state["table.weight"]
    assert state.keys() == dict(net.named_parameters(remove_duplicate=False)).keys()
