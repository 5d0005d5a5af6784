"""torch-pruning follows channels along the autograd graph: where it is right, both must agree on every channel."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch_pruning as tp
from torch import nn

from deploypruner.channels.allocate import make_plan
from deploypruner.channels.remove import remove_and_prove
from deploypruner.graph import Graph, trace
from deploypruner.records import Group
from tests.nets import make

# Residual stream, concatenation, depthwise with squeeze-and-excitation, linear after flatten.
NETS = ("residual", "dense", "squeeze-excite", "vgg")

Place = tuple[str, str, int]  # module, "out" or "in", position


def ours(group: Group, channel: int, layers: dict[str, nn.Module]) -> set[Place]:
    """Where one channel lives, on the weights of layers torch-pruning knows."""
    places: set[Place] = set()
    for member in group.members:
        name, _, parameter = member.parameter.rpartition(".")
        if name in layers and parameter == "weight":
            side = "out" if member.axis == 0 else "in"
            places |= {(name, side, int(i)) for i in member.index[channel]}
    return places


def theirs(known: tp.DependencyGraph, root: Place, names: dict[nn.Module, str]) -> set[Place]:
    """The same from torch-pruning, asked for the group of one output channel."""
    layer = next(module for module, name in names.items() if name == root[0])
    group = known.get_pruning_group(layer, known.get_pruner_of_module(layer).prune_out_channels, [root[2]])
    places: set[Place] = set()
    for dependency, positions in group:
        if dependency.target.module in names:
            out = known.is_out_channel_pruning_fn(dependency.handler)
            places |= {(names[dependency.target.module], "out" if out else "in", int(i)) for i in positions}
    return places


def both(name: str) -> tuple[Graph, tp.DependencyGraph, dict[str, nn.Module]]:
    net, x = make(name)
    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    layers = {path: module for path, module in net.named_modules() if isinstance(module, kinds)}
    return trace(net, x), tp.DependencyGraph().build_dependency(net, example_inputs=x), layers


@pytest.mark.parametrize("name", NETS)
def test_both_couple_the_same_positions_for_every_channel(name):
    graph, known, layers = both(name)
    names = {module: path for path, module in layers.items()}
    agreed = 0
    for group in graph.groups:
        for channel in range(group.size):
            places = ours(group, channel, layers)
            root = min(p for p in places if p[1] == "out" and not isinstance(layers[p[0]], nn.BatchNorm2d))
            assert theirs(known, root, names) == places
            agreed += 1
    assert agreed >= 16


@pytest.mark.parametrize("name", NETS)
def test_what_torch_pruning_prunes_and_this_does_not_is_the_models_output(name):
    graph, _, layers = both(name)
    pruned = {(m.parameter, int(i)) for g in graph.groups for m in g.members if m.axis == 0 for i in m.index.flat}
    left = {
        path for path, m in layers.items() if any((f"{path}.weight", i) not in pruned for i in range(len(m.weight)))
    }
    assert {(f.parameter, f.reason) for f in graph.frozen if f.axis == 0} == {
        (f"{path}.weight", "model output") for path in left
    }
    assert len(left) == 1


# The reason for a graph of its own: both nets run after torch-pruning's cut, and compute something else.
@pytest.mark.parametrize(
    ("name", "root", "right", "wrong"),
    [
        # The zero-padded shortcut puts channel 5 of `a` on channel 9 of `b`.
        ("option a", ("a.0", "out", 5), ("b.0", "out", 9), ("b.0", "out", 5)),
        # Channel 0 of `join` is in the first half of a split, which goes to `left`.
        ("branches", ("join.0", "out", 0), ("left.0", "in", 0), ("head", "in", 8)),
    ],
)
def test_where_torch_pruning_silently_couples_the_wrong_channels(name, root, right, wrong):
    graph, known, layers = both(name)
    names = {module: path for path, module in layers.items()}
    group, channel = next(
        (group, channel)
        for group in graph.groups
        for channel in range(group.size)
        if root in ours(group, channel, layers)
    )
    mine = ours(group, channel, layers)
    assert right in mine
    assert wrong not in mine
    assert wrong in theirs(known, root, names)
    assert output_changed_by(known, layers, root, make(name)[1]) > 1e-3
    keep = {group.id: np.delete(np.arange(group.size), channel)}
    plan = make_plan(graph, keep, criterion="none", scope="uniform", step=1)
    assert all(check.passed for check in remove_and_prove(graph, plan)[1])


def output_changed_by(known: tp.DependencyGraph, layers: dict[str, nn.Module], root: Place, x: torch.Tensor) -> float:
    """Relative difference between torch-pruning's model without a channel and the same one with zeros there."""
    net = known.model
    names = {module: path for path, module in layers.items()}
    masked = copy.deepcopy(net)
    for path, side, position in theirs(known, root, names):
        for name, parameter in masked.get_submodule(path).named_parameters(recurse=False):
            if side == "out" or (name == "weight" and parameter.ndim > 1):
                parameter.data.select(0 if side == "out" else 1, position).zero_()
    known.get_pruning_group(layers[root[0]], tp.prune_conv_out_channels, [root[2]]).prune()
    with torch.no_grad():
        wanted, got = masked(x), net(x)
    return float((wanted - got).abs().max() / wanted.abs().max())
