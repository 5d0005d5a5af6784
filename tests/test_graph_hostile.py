"""Modules that have broken pruning tools, against what a person works out about them by hand."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import Graph, trace
from deploypruner.graph.inputs import as_inputs, call, tensors
from tests.hostile import CASES
from tests.test_graph_random import random_plan

pytestmark = pytest.mark.slow


@functools.cache
def traced(name: str) -> tuple[nn.Module, Any, Graph]:
    """A module, its inputs and its graph; no test changes them."""
    net, inputs = CASES[name].make()
    return net, inputs, trace(net, inputs)


@pytest.mark.parametrize("name", CASES)
def test_groups_are_those_found_by_hand(name):
    found: dict[str, list[int]] = {}
    for group in traced(name)[2].groups:
        for member in group.members:
            found.setdefault(f"{member.parameter}:{member.axis}", []).append(group.size)
    expected = CASES[name].groups
    assert {key: sorted(found.get(key, []), reverse=True) for key in expected} == expected


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.frozen])
def test_what_is_frozen_says_why(name):
    reasons = {f"{f.parameter}:{f.axis}": f.reason for f in traced(name)[2].frozen}
    for key, words in CASES[name].frozen.items():
        assert words in reasons[key]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", CASES)
def test_any_plan_is_proved_and_keeps_the_outputs_form(name, seed):
    net, inputs, graph = traced(name)
    module, checks = remove_and_prove(graph, random_plan(graph, seed))
    assert all(check.passed for check in checks), checks
    with torch.no_grad():
        wanted, got = (call(m, as_inputs(inputs)) for m in (net, module))
    assert type(got) is type(wanted)
    assert [t.shape for t in tensors(got)] == [t.shape for t in tensors(wanted)]


@pytest.mark.parametrize("name", ["SharedAcrossScales", "Parametrized"])
def test_a_pruned_module_can_be_traced_and_pruned_again(name):
    _, inputs, graph = traced(name)
    module, _ = remove_and_prove(graph, random_plan(graph, 1))
    again = trace(module, inputs)
    assert all(check.passed for check in remove_and_prove(again, random_plan(again, 2))[1])


def test_shuffled_channels_keep_their_partners():
    """Channel 3i + j of `a` is channel 4j + i of `b`: 1 -> 4, 4 -> 5."""
    group = traced("DepthwiseShuffle")[2].group("a.weight:0")
    rows = {(m.parameter, m.axis): m.index.reshape(-1).tolist() for m in group.members}
    assert rows["b.weight", 0] == rows["c.weight", 1] == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]


def test_a_flattened_channel_owns_all_its_positions():
    """Six channels of 4 x 4 pixels: channel 1 is columns 16 to 31."""
    group = traced("Flattened")[2].group("a.weight:0")
    columns = next(m.index for m in group.members if (m.parameter, m.axis) == ("b.weight", 1))
    assert columns[1].tolist() == list(range(16, 32))


def test_one_channel_left_of_a_squeezed_axis_is_still_an_axis():
    net, inputs, graph = traced("SqueezedFlat")
    keep = {graph.groups[0].id: np.array([3])}
    module = graph.cut(graph.removed(keep))
    masked = copy.deepcopy(net)
    with torch.no_grad():
        masked.b.weight[:, [0, 1, 2, 4, 5]] = 0
        torch.testing.assert_close(module(inputs), masked(inputs))


def test_a_layer_nothing_uses_is_named_in_the_remarks():
    assert any("unused.weight" in remark for remark in traced("Outputs")[2].remarks)


class Positions(nn.Module):
    """Reads the first entries of a longer buffer, as BERT does."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("numbers", torch.arange(40))
        self.table, self.o = nn.Embedding(40, 12), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(x + self.table(self.numbers[: x.shape[1]]))


def test_what_lives_in_buffers_alone_is_no_group():
    graph = trace(Positions().eval(), torch.randn(2, 7, 12))
    assert [g.id for g in graph.groups] == []
