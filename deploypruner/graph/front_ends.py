"""From a model to its graph: the front ends, in the order they are tried."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.export import ExportedProgram

from deploypruner.graph.capture import capture
from deploypruner.graph.dependency import Graph, assemble
from deploypruner.graph.propagate import Tracing
from deploypruner.graph.rewrite import rewrite


def trace(model: nn.Module | ExportedProgram, example_inputs: Any) -> Graph:
    """Find out which channels of a model can be removed, and what must go with each of them.

    Args:
        model: A module in any mode, or a program from torch.export; it is not changed.
        example_inputs: One tensor or a tuple of positional inputs, batch on axis 0.

    Returns:
        The graph: `graph.groups` can be pruned, `graph.frozen` cannot, each entry with its reason.

    Raises:
        TraceError: torch.export cannot capture the model.
    """
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    captured = capture(model, inputs)
    tracing = Tracing(captured.module)
    return assemble(
        captured.module,
        tracing,
        example_inputs=captured.example_inputs,
        dynamic_batch=captured.dynamic_batch,
        remarks=captured.remarks,
        front_end="torch.export",
        cut=partial(rewrite, tracing),
    )
