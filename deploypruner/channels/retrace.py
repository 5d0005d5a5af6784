"""Trace a model again for a plan that was made earlier."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from deploypruner.channels.planned import Planned
from deploypruner.errors import PlanError
from deploypruner.graph import Graph, trace
from deploypruner.graph.capture.exportable_part import Holder
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, from_json, map_tensors

# A dynamic batch is traced with two samples: export turns a batch of one into a constant.
_BATCH = 2


def retrace(plan: Planned, model: nn.Module, example_inputs: Any = None) -> Graph:
    """The graph of a model a plan can be applied to.

    Args:
        plan: A plan for a model of this kind.
        model: The dense model.
        example_inputs: What it runs on; None for zeros of the shapes in the plan.

    Raises:
        PlanError: The plan was made for another model; the first difference is named.
        TraceError: The model cannot be traced.
    """
    if example_inputs is not None:
        graph = trace(model, example_inputs)
    elif plan.part:
        try:
            part = model.get_submodule(plan.part)
        except AttributeError:
            raise PlanError(
                f"the plan prunes the part '{plan.part}', which this model does not have",
                hint="apply a plan only to the model it was made for",
            ) from None
        graph = replace(
            trace(Holder(plan.part, part), inputs_of(plan, model)), part=plan.part, whole=sharing_copy(model)
        )
    else:
        graph = trace(model, inputs_of(plan, model))
    plan.check(graph)
    return graph


def inputs_of(plan: Planned, model: nn.Module) -> Inputs:
    """Zeros, a valid index into any table, of the shapes the plan was made with, where the model lives."""
    inputs = from_json(plan.inputs, batch=_BATCH)
    weight = next(model.parameters(), None)
    return inputs if weight is None else map_tensors(lambda t: t.to(weight.device), inputs)
