"""trace: the dependency graph, compared with the user's model."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import nn

from deploypruner.graph import trace
from deploypruner.stages import Build, Stage
from deploypruner.verify.compare import compare_outputs, flatten_outputs

# Both run the same float32 operators; only a cache or a fused path of the original may round differently.
_RELATIVE = 1e-5


class Trace(Stage):
    """Find the groups of channels, and check that the graph computes what the model does."""

    name: ClassVar[str] = "trace"

    def run(self, build: Build) -> Build:
        """Give the graph."""
        assert build.model is not None, "stage 'load' has not run"
        graph = trace(build.model, build.example_inputs)
        module = build.model if isinstance(build.model, nn.Module) else build.model.module()
        with torch.no_grad():
            wanted, got = (flatten_outputs(m(*build.example_inputs)) for m in (module, graph.module))
        scale = max(float(abs(w).max()) for w in wanted)
        check = compare_outputs("traced graph = model (float32)", got, wanted, tolerance=_RELATIVE * max(scale, 1.0))
        return replace(build, graph=graph, checks=(check,), remarks=build.remarks + graph.remarks)

    def document(self, build: Build) -> str:
        """Groups, channels and MACs."""
        graph = build.traced
        channels = sum(g.size for g in graph.groups)
        macs, params = graph.costs.macs(), graph.costs.params()
        return f"{len(graph.groups)} groups, {channels} channels, {macs / 1e6:.1f} M MACs, {params:,} parameters"
