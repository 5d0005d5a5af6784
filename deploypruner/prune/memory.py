"""Will a forward pass in float64 fit in memory?"""

from __future__ import annotations

from math import prod

import psutil
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploypruner.graph.module import get_state
from deploypruner.graph.nodes import size_hint
from deploypruner.prune.streamed import last_uses

# Workspaces of convolutions and what other programs take meanwhile.
_USABLE = 0.7
_SYMPTOMS = ("not enough memory", "can't allocate memory", "out of memory", "doesn't support float64")


def fits(module: nn.Module, samples: int, dtype: torch.dtype) -> bool:
    """Does a streamed run of this many samples fit into the memory that is free now?

    True where the module is not a graph: then nothing is known in advance.
    """
    if not isinstance(module, GraphModule):
        return True
    return peak_bytes(module, samples, dtype) <= _USABLE * _free(module)


def peak_bytes(module: GraphModule, samples: int, dtype: torch.dtype) -> int:
    """Most bytes that converted parameters and intermediate values take at one time."""
    dying, alive, peak = last_uses(module.graph), dict[Node, float](), 0.0
    traced = _traced_batch(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            continue
        for value in (*node.all_input_nodes, node):
            if value not in alive:
                alive[value] = _numbers(module, value, samples / traced) * dtype.itemsize
        peak = max(peak, sum(alive.values()))
        for dead in dying[node]:
            alive.pop(dead, None)
    return int(peak)


def lacks_memory(error: BaseException) -> bool:
    """Is this exception about too little memory, or a device without float64?"""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | TypeError) and any(s in str(error) for s in _SYMPTOMS)


def _numbers(module: GraphModule, node: Node, growth: float) -> float:
    """Elements of what a node holds; views hold nothing of their own."""
    if node.op == "get_attr":
        state = get_state(module, str(node.target))
        return state.numel() if isinstance(state, Tensor) else 0
    if isinstance(node.target, torch._ops.OpOverload) and any(r.alias_info for r in node.target._schema.returns):
        return 0
    leaves = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    return sum(
        prod(size_hint(s) for s in t.shape) * (1 if all(isinstance(s, int) for s in t.shape) else growth)
        for t in leaves
    )


def _traced_batch(module: GraphModule) -> int:
    """Batch the graph was traced with, 1 where it is fixed."""
    sizes = [
        size
        for node in module.graph.nodes
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor)
        for size in node.meta["val"].shape
    ]
    return next((size_hint(size) for size in sizes if not isinstance(size, int)), 1)


def _free(module: nn.Module) -> int:
    """Bytes free on the device of the parameters."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
