"""trace: the dependency graph, and data in batches that it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from deploypruner.build.answering import Runner
from deploypruner.build.fitting import require_better_than_chance
from deploypruner.build.reach import REACHABLE, require_reachable
from deploypruner.build.register import stages
from deploypruner.build.sparsity import check_layers
from deploypruner.build.stage import Stage
from deploypruner.build.state import Build
from deploypruner.errors import InputError
from deploypruner.graph import Graph, trace
from deploypruner.graph.inputs import batch_size, call, resized, tensors
from deploypruner.graph.open_axes import at_text
from deploypruner.sources.adapted import WholeBatches
from deploypruner.sources.batches import Data
from deploypruner.verify.compare import compare_outputs, flatten_outputs

_RELATIVE = 1e-5


@stages.register("trace")
class Trace(Stage):
    """Find the groups of channels, and check that the graph computes what the model does."""

    name: ClassVar[str] = "trace"
    needs: ClassVar[tuple[str, ...]] = ("load",)
    reads: ClassVar[tuple[str, ...]] = ("model.dynamic",)
    writes: ClassVar[tuple[str, ...]] = (REACHABLE,)
    fatal: ClassVar[bool] = True

    def run(self, build: Build) -> Build:
        """Give the graph."""
        assert build.model is not None, "stage 'load' has not run"
        graph = trace(build.model, build.example_inputs, dynamic_shapes=build.recipe.model.dynamic or None)
        data, remarks = _in_batches(build.data, graph)
        checks = () if graph.check is None else (graph.check,)
        if graph.open_axes:
            example = " ".join("x".join(map(str, t.shape[1:])) for t in tensors(graph.example_inputs))
            remarks += (
                f"everything was timed at the example's size {example}; files were checked at "
                f"{at_text(graph.open_axes)}, too",
            )
        return replace(build, graph=graph, data=data, checks=checks, remarks=build.remarks + graph.remarks + remarks)

    def validate(self, build: Build) -> None:
        """Refuse sparse patterns, a budget and labels that the traced model shows to make no sense."""
        check_layers(build)
        require_reachable(build)
        _require_known_labels(build)

    def document(self, build: Build) -> str:
        """Groups, channels and MACs."""
        graph = build.traced
        channels = sum(g.size for g in graph.groups)
        macs, params = graph.costs.macs(), graph.costs.params()
        return f"{len(graph.groups)} groups, {channels} channels, {macs / 1e6:.1f} M MACs, {params:,} parameters"


def _require_known_labels(build: Build) -> None:
    """Refuse labels that the dense model knows nothing of, before anything is trained on them."""
    if build.data is not None and build.metric is None and not build.recipe.data.allow_chance:
        runner = Runner(build.traced.module, build.traced.example_inputs)
        require_better_than_chance(build.data, runner, build.tasks)


def _in_batches(data: Data | None, graph: Graph) -> tuple[Data | None, tuple[str, ...]]:
    """The data in batches the graph can run on, and a remark where that takes away the choice of their size.

    Raises:
        InputError: The model takes single samples only, on which nothing can be trained.
    """
    if data is None or graph.dynamic_batch or _runs_twice_the_batch(graph):
        return data, ()
    size = batch_size(graph.example_inputs)
    if size == 1:
        raise InputError(
            "the model takes one sample at a time: its batch size is written into its graph, and batch norm and "
            "fine-tuning need more",
            hint="make the batch dynamic (x.reshape(len(x), -1), not x.reshape(1, -1)), or leave out --data",
        )
    fixed = replace(data, train=WholeBatches(data.train, size), val=WholeBatches(data.val, size))
    left = [0 if b.samples is None else b.samples % size for b in (data.train, data.val)]
    lost = (
        f"; {left[0]} training and {left[1]} validation samples fill no batch and are not used" if any(left) else ""
    )
    return fixed, (f"the model takes batches of exactly {size} samples{lost}",)


def _runs_twice_the_batch(graph: Graph) -> bool:
    """Does the graph, traced at one batch size, give two batches at once what it gives one after the other?"""
    single = graph.example_inputs
    with torch.no_grad():
        want = [np.concatenate([value, value]) for value in flatten_outputs(call(graph.module, single)) if value.ndim]
        try:
            got = flatten_outputs(call(graph.module, resized(single, 2 * batch_size(single))))
        except (RuntimeError, AssertionError):
            return False
    return compare_outputs("", got, want, tolerance=_RELATIVE * max(float(abs(w).max()) for w in want)).passed
