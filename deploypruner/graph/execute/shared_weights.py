"""A copy of a model that shares its weights: tracing must cost no second copy of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.errors import TraceError
from deploypruner.graph.execute.module import TracedModule


def sharing_copy(model: nn.Module) -> nn.Module:
    """Copy a module's structure in evaluation mode; parameters are new objects over the same storage.

    Buffers and other tensors are copied: running statistics and caches are written to. So are the parameters
    of a module that overrides `train`, because some merge adapters into their weights when they switch. The
    mode is switched to training and back, which drops what some models cache in evaluation mode.

    Raises:
        TraceError: The model holds something that cannot be copied.
    """
    own = {
        id(p)
        for module in model.modules()
        if type(module).train not in (nn.Module.train, TracedModule.train)
        for p in module.parameters()
    }
    memo: dict[int, Any] = {}
    for tensor in _tensors(model):
        if isinstance(tensor, nn.Parameter):
            data = tensor.detach()
            shared = nn.Parameter(data.clone() if id(tensor) in own else data, requires_grad=tensor.requires_grad)
            memo[id(tensor)] = shared
        else:
            # deepcopy refuses what autograd made, such as a mask that forward cached
            memo[id(tensor)] = tensor.detach().clone()
    try:
        copied = copy.deepcopy(model, memo)
    except Exception as error:  # any __deepcopy__ of the user's may run
        raise TraceError(
            f"the model cannot be copied: {type(error).__name__}: {str(error).strip().splitlines()[0][:200]}",
            hint="keep only parameters, buffers and plain values on it",
        ) from error
    copied.train()
    return copied.eval()


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer, and the tensors in plain attributes, once each."""
    seen: set[int] = set()
    for module in model.modules():
        plain = (v for k, v in vars(module).items() if k not in ("_parameters", "_buffers", "_modules"))
        found = [*module._parameters.values(), *module._buffers.values(), *pytree.tree_leaves(list(plain))]
        for tensor in found:
            if type(tensor) in (Tensor, nn.Parameter, nn.Buffer) and id(tensor) not in seen:
                seen.add(id(tensor))
                yield tensor


def sizes_of(model: nn.Module) -> Iterator[int]:
    """Every axis length of every tensor the model holds."""
    for tensor in _tensors(model):
        yield from tensor.shape
