"""What the proof costs, what it leaves alone, and what it runs on."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

from deploypruner.channels.proof import memory
from deploypruner.channels.proof import removal as proof
from deploypruner.channels.proof.probes import probe
from deploypruner.channels.proof.removal import compare_modules, prove
from deploypruner.graph import trace
from deploypruner.graph.execute.float64_interpreter import Converted, Streamed
from deploypruner.graph.execute.module import get_state
from tests.nets import make
from tests.proving import proved, random_plan
from tests.statistics_nets import make_statistics

pytestmark = pytest.mark.slow

# ---------------------------------------------------------------------- cost, and what is left alone


def test_no_copy_of_the_weights_is_made(monkeypatch):
    graph = trace(*make_statistics("layer norm"))
    plan = random_plan(graph, 0)
    module = graph.cut(graph.removed(plan.keep))

    def refuse(*_):
        raise AssertionError("the proof copies a module")

    monkeypatch.setattr(copy, "deepcopy", refuse)
    assert all(check.passed for check in prove(graph, plan, module))


def test_at_most_one_layer_is_converted_at_a_time():
    """Ten layers of 64 x 64: what is alive never holds more than two of them."""
    net = nn.Sequential(*[nn.Linear(64, 64, bias=False) for _ in range(10)]).eval()
    graph = trace(net, torch.randn(2, 64))
    one = 64 * 64 * 8
    assert one <= memory.peak_bytes(graph.module, 2, torch.float64) < 2 * one


def test_neither_module_is_changed_even_by_graphs_that_write_in_place():
    for make_net, name in ((make, "in place"), (make_statistics, "global response")):
        graph = trace(*make_net(name))
        plan = random_plan(graph, 0)
        module = graph.cut(graph.removed(plan.keep))
        double = copy.deepcopy(module).double()  # no conversion hides a write
        before = [{k: v.clone() for k, v in m.state_dict().items()} for m in (graph.module, module, double)]
        code = graph.module.code, module.code
        prove(graph, plan, module)
        compare_modules("itself", module, double, graph.example_inputs)
        for m, state in zip((graph.module, module, double), before, strict=True):
            assert all(torch.equal(state[k], v) for k, v in m.state_dict().items())
        assert code == (graph.module.code, module.code)


def test_a_graph_left_in_training_mode_is_proved_in_evaluation_mode():
    graph = trace(*make("vgg"))
    plan = random_plan(graph, 0)
    module = graph.cut(graph.removed(plan.keep))
    wanted = prove(graph, plan, module)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    graph.module.train()
    assert prove(graph, plan, module.train()) == wanted
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert graph.module.training


def test_where_float64_does_not_fit_float32_is_used_and_said(monkeypatch):
    graph = trace(*make("residual"))
    plan = random_plan(graph, 0)
    monkeypatch.setattr(proof, "fits", lambda *_: False)
    for check in proved(graph, plan)[1]:
        assert check.passed
        assert "(float32" in check.name
        assert 1e-5 < check.tolerance < 1e-2


def test_an_allocation_that_fails_falls_back_to_float32_and_then_fails_the_check(monkeypatch):
    graph = trace(*make("residual"))
    plan = random_plan(graph, 0)
    refused = {torch.float64}
    run = Streamed.outputs

    def outputs(self, inputs):
        if self.dtype in refused:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
        return run(self, inputs)

    monkeypatch.setattr(Streamed, "outputs", outputs)
    module, checks = proved(graph, plan)
    assert all(c.passed and "(float32" in c.name for c in checks)
    refused.add(torch.float32)
    (check,) = prove(graph, plan, module)
    assert not check.passed
    assert check.detail.startswith("not enough memory to compare: RuntimeError: [enforce fail]")


def test_a_convolution_needs_its_windows_beside_its_input_and_output():
    """4 channels of 10 x 10 into 6 of 8 x 8 by 3 x 3 windows: 64 windows of 36 numbers for every sample."""
    graph = trace(nn.Conv2d(4, 6, 3, bias=False).eval(), torch.randn(2, 4, 10, 10))
    sample = 4 * 100 + 6 * 64 + 4 * 9 * 64
    assert memory.peak_bytes(graph.module, 3, torch.float64) == 8 * (3 * sample + 6 * 4 * 9)


def test_a_large_activation_does_not_fit(monkeypatch):
    graph = trace(*make("residual"))
    monkeypatch.setattr(memory, "_free", lambda _: 1000)
    assert not memory.fits(graph.module, 3, torch.float64)


# ---------------------------------------------------------------------- inputs


def test_probes_vary_every_sample_and_stay_valid():
    example = (
        torch.ones(2, 5),
        torch.arange(10).reshape(2, 5),
        torch.tensor([[True, False], [True, True]]),
        torch.tensor([[0.0, -float("inf")]] * 2),
        3,
        None,
    )
    floats, ids, flags, additive, number, nothing = probe(example, 3, seed=0)
    assert floats.shape == (3, 5)
    assert len(floats.unique()) == 15
    assert [sorted(row) for row in ids.tolist()] == [[*range(5)], [*range(5, 10)], [*range(5)]]
    assert ids[0].tolist() != ids[2].tolist()
    assert flags.tolist() == [[True, False], [True, True], [True, False]]
    assert additive.tolist() == [[0.0, -float("inf")]] * 3
    assert (number, nothing) == (3, None)
    assert torch.equal(floats, probe(example, 3, seed=0)[0])
    assert not torch.equal(floats, probe(example, 3, seed=1)[0])


def test_a_model_that_takes_logarithms_gets_inputs_of_the_right_sign():
    class Log(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.o(self.a(x.log()).cos())

    graph = trace(Log().eval(), torch.rand(2, 4) + 0.1)
    for check in proved(graph, random_plan(graph, 0))[1]:
        assert check.passed
        assert check.detail.startswith("outputs differ by")


def test_an_output_that_ignores_the_input_is_a_weak_proof():
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.o = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.o(self.a(1e-9 * x).cos())

    graph = trace(Deaf().eval(), torch.randn(2, 4))
    for check in proved(graph, random_plan(graph, 0))[1]:
        assert check.passed
        assert check.detail.startswith("weak proof: outputs differ by only ")


def test_the_second_batch_is_of_another_size_where_the_batch_is_dynamic():
    graph = trace(*make("residual"))
    names = [c.name for c in proved(graph, random_plan(graph, 0))[1]]
    assert names == ["masked = removed (float64)", "masked = removed (float64, batch of 3)"]
    fixed = dataclasses.replace(graph, dynamic_batch=False)
    names = [c.name for c in proved(fixed, random_plan(graph, 0))[1]]
    assert names == ["masked = removed (float64)", "masked = removed (float64, other inputs)"]


# ---------------------------------------------------------------------- modules without a graph


@pytest.mark.parametrize("name", ["residual", "squeeze-excite", "dense", "attention", "shuffle"])
def test_a_model_without_a_graph_is_proved_by_a_masked_copy(name):
    net, x = make(name)
    graph = trace(net, x)
    plan = random_plan(graph, 0)
    for check in proved(dataclasses.replace(graph, front_end="torch-pruning", module=net), plan)[1]:
        assert check.passed, check


@pytest.mark.parametrize("name", ["layer norm", "group norm"])
def test_a_masked_copy_knows_torchs_own_norms(name):
    net, x = make_statistics(name)
    if name == "layer norm":
        net.last = nn.Identity()  # without a scale nothing tells which of its channels are gone
    graph = trace(net, x)
    plan = random_plan(graph, 0)
    for check in proved(dataclasses.replace(graph, front_end="torch-pruning", module=net), plan)[1]:
        assert check.passed, check
    assert get_state(net, "a.weight").ne(0).all()


def test_a_module_is_compared_in_float64_all_through_although_it_casts():
    net, x = make_statistics("casts")
    check = compare_modules("class = graph", net, trace(net, x).module, (x,))
    assert check.passed
    assert check.max_abs_diff <= 1e-14
    got = Converted(net, torch.float64).outputs((x,))[0]
    assert got.dtype == torch.float64
    assert not net.training
    assert next(net.parameters()).dtype == torch.float32


def test_a_module_that_raises_fails_the_comparison_and_says_which():
    class Broken(nn.Module):
        def forward(self, x):
            raise ValueError("no such view\nmore")

    check = compare_modules("class = graph", Broken(), nn.Identity(), (torch.ones(2, 3),))
    assert not check.passed
    assert check.detail.startswith("the first module raises: ValueError: no such view")
