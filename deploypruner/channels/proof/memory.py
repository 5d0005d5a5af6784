"""Will a forward pass in float64 fit in memory?"""

from __future__ import annotations

from math import prod

import psutil
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from deploypruner.graph.execute.float64_interpreter import last_uses
from deploypruner.graph.execute.module import get_state
from deploypruner.graph.nodes import is_tensor, op_name, shape_of, size_hint

# Workspaces of convolutions and what other programs take meanwhile.
_USABLE = 0.7
_SYMPTOMS = ("not enough memory", "can't allocate memory", "out of memory", "doesn't support float64")


def fits(module: nn.Module, samples: int | None, dtype: torch.dtype) -> bool:
    """Does a streamed run of this many samples (None: as traced) fit into the memory that is free now?

    True where the module is not a graph: then nothing is known in advance.
    """
    if not isinstance(module, GraphModule):
        return True
    return peak_bytes(module, samples, dtype) <= _USABLE * _free(module)


def peak_bytes(module: GraphModule, samples: int | None, dtype: torch.dtype) -> int:
    """Most bytes that converted parameters and intermediate values take at one time."""
    dying, alive, peak = last_uses(module.graph), dict[Node, float](), 0.0
    growth = 1.0 if samples is None else samples / _traced_batch(module)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            continue
        for value in (*node.all_input_nodes, node):
            if value not in alive:
                alive[value] = _numbers(module, value, growth) * dtype.itemsize
        columns = _columns(node) * growth * dtype.itemsize
        peak = max(peak, sum(alive.values()) + columns)
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
    values = [t for t in pytree.tree_leaves(node.meta.get("val")) if isinstance(t, Tensor)]
    return growth * sum(prod(size_hint(size) for size in value.shape) for value in values)


def _columns(node: Node) -> int:
    """Elements of the matrix of windows that a convolution in float64 is computed from."""
    if not op_name(node).startswith("conv") or not isinstance(node.args[1], Node):
        return 0
    inputs, weight, out = (shape_of(n) for n in (node.args[0], node.args[1], node))
    kernel = prod(weight[2:])
    return inputs[1] * kernel * out[0] * prod(out[2:]) if kernel > 1 else 0


def _traced_batch(module: GraphModule) -> int:
    """Length of axis 0 of the first input, when it was traced."""
    inputs = (node for node in module.graph.nodes if node.op == "placeholder" and is_tensor(node))
    return next((shape_of(node)[0] for node in inputs if shape_of(node)), 1)


def _free(module: nn.Module) -> int:
    """Bytes free on the device of the parameters."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)
