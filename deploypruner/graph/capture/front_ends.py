"""From a model to its graph: the front ends, in the order they are tried.

torch.export of the whole model comes first, and where it works nothing else is looked at. Where the model runs but
cannot be exported, two things are left: the largest part that can be exported, with everything the first front end
offers, and torch-pruning's autograd tracing of the whole, which knows fewer operators. Whichever of the two can
remove more is taken.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.export import ExportedProgram

from deploypruner.errors import TraceError
from deploypruner.graph.capture.asked_axes import Request, requested
from deploypruner.graph.capture.exportable_part import largest_part
from deploypruner.graph.capture.from_autograd import trace_autograd
from deploypruner.graph.capture.from_model import capture
from deploypruner.graph.capture.observe import layers_run
from deploypruner.graph.capture.split_qkv import untie
from deploypruner.graph.dependency import Graph, assemble
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, as_inputs
from deploypruner.graph.labels.branches import find_residuals, pair_residuals
from deploypruner.graph.labels.propagate import Propagation
from deploypruner.graph.rewrite.shrink import rewrite


def trace(model: nn.Module | ExportedProgram, example_inputs: Any, *, dynamic_shapes: Any = None) -> Graph:
    """Find out which channels of a model can be removed, and what must go with each of them.

    Args:
        model: Module in any mode, or a program from torch.export; it is not changed.
        example_inputs: Inputs the model can run on: one tensor [B, ...], a tuple of positional inputs or a dict of
            keyword inputs, batch on axis 0.
        dynamic_shapes: Axes that stay open beside the batch, in the graph and in what is exported from it: text as
            for `--dynamic` ("2,3", "ids:1=8..512", "auto" for every size that the model leaves open, "none"), or as
            torch.export wants them. By default those of a program, and otherwise none: the graph takes other sizes
            where it is right there, else refuses them.

    Returns:
        The graph: `graph.groups` can be pruned, `graph.frozen` cannot, each entry with its reason. Where the model
        cannot be exported, `graph.front_end` and `graph.part` say what was done instead, and `graph.remarks` why.

    Raises:
        InputError: The model cannot be pruned as it is, or cannot keep an axis open that was asked for.
        TraceError: It does not run on these inputs, or no front end can trace it; carries every reason.
    """
    inputs = as_inputs(example_inputs)
    request = requested(dynamic_shapes, model, inputs)
    try:
        return _exported(model, inputs, request)
    except TraceError as error:
        if isinstance(model, ExportedProgram) or request not in (None, "none") or not _runs(model, inputs):
            raise
        refused = error
    found, reasons = [], [refused.message]
    for front_end in (_part, _autograd):
        try:
            found.append(front_end(model, inputs, refused.message))
        except TraceError as error:
            reasons.append(error.message)
    if not found:
        raise TraceError("; ".join(reasons), hint=refused.hint) from refused
    return max(found, key=_removable)


def _exported(model: nn.Module | ExportedProgram, inputs: Inputs, request: Request = None) -> Graph:
    captured = capture(model, inputs, request)
    module = captured.module
    for graph in module.graphs:
        untie(module, graph)
    tracing = Propagation(module, inputs=captured.example_inputs)
    tracing.residuals = find_residuals(module, tracing)
    if tracing.training is not None:
        trained = find_residuals(module, tracing.training, tracing.training.graph)
        tracing.residuals, tracing.training.residuals = pair_residuals(tracing.residuals, trained)
    return assemble(
        module,
        tracing,
        example_inputs=captured.example_inputs,
        dynamic_batch=captured.dynamic_batch,
        remarks=captured.remarks,
        front_end="torch.export",
        cut=partial(rewrite, tracing),
        check=captured.check,
        trains_differently=captured.trains_differently,
        open_axes=captured.open_axes,
    )


def _part(model: nn.Module, inputs: Inputs, refused: str) -> Graph:
    part = largest_part(model, inputs, _prunable)
    graph: Graph = part.result
    remark = (
        f"{refused}; only its part '{part.name}' was traced, which holds {100 * part.share:.0f} % of the parameters: "
        f"everything else stays as it is"
    )
    return replace(graph, part=part.name, whole=sharing_copy(model), remarks=(remark, *graph.remarks))


def _prunable(model: nn.Module, inputs: Inputs) -> Graph:
    graph = _exported(model, inputs)
    if not graph.groups:
        raise TraceError("nothing in this part can be removed")
    return graph


def _autograd(model: nn.Module, inputs: Inputs, refused: str) -> Graph:
    traced = trace_autograd(model, inputs)
    remark = (
        f"{refused}; traced by torch-pruning's autograd tracing instead: the result is your own class, and ONNX "
        f"export may not be possible, or hold only the path that one run takes"
    )
    return assemble(
        traced.module,
        traced.labelling,
        example_inputs=inputs,
        dynamic_batch=traced.dynamic_batch,
        remarks=(remark, *traced.remarks),
        front_end="torch-pruning",
        cut=traced.cut,
    )


def _runs(model: nn.Module, inputs: Inputs) -> bool:
    """Does the model run on these inputs at all?"""
    try:
        layers_run(sharing_copy(model), inputs)
    except Exception:  # noqa: BLE001 - whatever the user's forward raises means "no"
        return False
    return True


def _removable(graph: Graph) -> int:
    """MACs that go when every group keeps a single channel."""
    least = {group.id: np.zeros(1, np.int64) for group in graph.groups}
    return graph.cost().macs - graph.cost(least).macs
