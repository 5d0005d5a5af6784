"""A gate on each residual branch: one number that what the branch adds is multiplied by, 1 as long as it stays."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import GraphModule

from deploypruner.graph.dependency import Graph

_PREFIX = "branch_gate_"


def gate_name(graph: Graph, branch: str) -> str:
    """Name of the buffer that is the gate of a branch in a module of `with_branch_gates`."""
    return f"{_PREFIX}{list(graph.residuals).index(branch)}"


def with_branch_gates(graph: Graph, branches: Sequence[str]) -> nn.Module:
    """A copy of the graph's module in which a gate of 0 stands for a branch that is gone; the graph is not changed.

    Everything else keeps its name, so `torch.func.functional_call` takes gates beside parameters.

    Args:
        graph: The traced model.
        branches: Ids of the branches that get a gate.
    """
    module = copy.deepcopy(graph.module)
    if not branches:
        return module
    assert isinstance(module, GraphModule), "only a traced graph has residual branches"
    nodes = {node.name: node for node in module.graph.nodes}
    like = next(module.parameters())
    for branch in branches:
        residual, name = graph.residuals[branch], gate_name(graph, branch)
        add, output = nodes[residual.add.name], nodes[residual.branch.name]
        # Without axes, so that it follows the type of what it multiplies under mixed precision.
        module.register_buffer(name, torch.ones((), device=like.device))
        with module.graph.inserting_before(add):
            gate = module.graph.get_attr(name)
            gated = module.graph.call_function(torch.ops.aten.mul.Tensor, (output, gate))
        gated.meta = dict(output.meta)
        add.replace_input_with(output, gated)
    module.recompile()
    return module
