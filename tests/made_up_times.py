"""A runtime whose layers cost their multiply-adds, instead of a worker that times files."""

from __future__ import annotations

import numpy as np
import pytest

from deploypruner.latency import Profile, build
from deploypruner.latency.matching import Lengths
from deploypruner.latency.plans import scattered_plans
from deploypruner.latency.probes import ProbeFiles
from deploypruner.runtime import NodeTime


def fake_nodes(graph, keep):
    """What a runtime would report whose convolutions cost their multiply-adds: one node for each layer."""
    module = graph.cut(graph.removed(keep))
    nodes = []
    for name, p in sorted(module.named_parameters()):
        if p.ndim >= 2:
            nodes.append(NodeTime(name, "Layer", (tuple(p.shape),), "f32>f32", 1e4 + 50.0 * p.numel()))
    return tuple(nodes)


class FakeTimer:
    """Stands in for the worker; counts what it is asked."""

    asked = 0

    def __init__(self, setting, feeds, device):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def refer_to(self, path):
        pass

    def drop(self, path):
        pass

    def profile(self, keep, *, seconds):
        FakeTimer.asked += 1
        nodes = fake_nodes(self.graph, keep)
        total = sum(n.ns for n in nodes)
        return Profile(np.array([[total, 1e6]] * 4), nodes)


class FakeFiles(ProbeFiles):
    """Its files are the plans themselves."""

    def __init__(self, graph, precisions, folder, *, seed, floats=(), placement="openvino"):
        self._graph = graph
        self.lengths, self.learnt = Lengths(graph), [{}, *scattered_plans(graph, 2, seed=seed)]

    def drops(self, precision):
        return True

    def write(self, keep, precision):
        return keep


def replace_timer(monkeypatch: pytest.MonkeyPatch, graph) -> None:
    """Let latency models of this graph be built of made-up times."""
    monkeypatch.setattr(FakeTimer, "graph", graph, raising=False)
    monkeypatch.setattr(FakeTimer, "asked", 0)
    monkeypatch.setattr(build, "ProbeTimer", FakeTimer)
    monkeypatch.setattr(build, "ProbeFiles", FakeFiles)


def true_ms(graph, keep):
    return sum(n.ns for n in fake_nodes(graph, keep)) / 1e6
