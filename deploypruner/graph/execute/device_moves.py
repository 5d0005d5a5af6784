"""Devices and data types of a graph that are not its own follow those of its weights when they move."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Graph

from deploypruner.graph.nodes import arguments, set_argument

# Marks a call whose data type is the model's; `graph.capture.data_types` finds them.
FOLLOWS = "follows_dtype"

Kind = tuple[torch.dtype | None, torch.device | None]


def kind_of(module: nn.Module) -> Kind:
    """Data type of the first floating-point weight, device of the first; None where there is none."""
    dtype, device = None, None
    for tensor in (*module.parameters(), *module.buffers()):
        device = tensor.device if device is None else device
        if tensor.is_floating_point():
            return tensor.dtype, tensor.device
    return dtype, device


def follow(graphs: Sequence[Graph], before: Kind, after: Kind) -> bool:
    """After the weights moved, let what follows them move as well; was there anything?"""
    if before == after:
        return False
    changed = False
    for graph in graphs:
        for node in graph.nodes:
            if not isinstance(node.target, torch._ops.OpOverload):
                continue
            args = arguments(node)
            if after[1] is not None and after[1] != before[1] and args.get("device") == before[1]:
                set_argument(node, "device", after[1])
                changed = True
            if FOLLOWS in node.meta and after[0] is not None and args["dtype"] != after[0]:
                set_argument(node, "dtype", after[0])
                changed = True
    return changed
