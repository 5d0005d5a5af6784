"""A plan applied to a dense model, in the model's own class."""

from __future__ import annotations

from typing import Any

from torch import nn

from deploypruner.channels.own_class import own_class
from deploypruner.channels.planned import Planned
from deploypruner.channels.retrace import retrace


def apply_plan(plan: Planned, model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """The pruned model in its own class; see `Plan.apply_to`.

    Raises:
        PlanError: The plan was made for another model, or the class cannot take these sizes.
    """
    graph = retrace(plan, model, example_inputs)
    removed = graph.removed(plan.keep)
    return own_class(graph, removed, model, graph.cut(removed))
