"""What a model is called with: a tuple of positional arguments, or a dict of keyword arguments.

Arguments may be nested (a dict of tensors, a list), None, numbers or flags. The batch is axis 0 of every tensor
whose axis 0 is as long as that of the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

Inputs = tuple[Any, ...] | dict[str, Any]


def as_inputs(example_inputs: Any) -> Inputs:
    """One tensor -> a tuple of it; a list -> a tuple; a tuple or a dict of keyword arguments stays."""
    if isinstance(example_inputs, dict):
        return dict(example_inputs)
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Run a module on its inputs."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside nested inputs or outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    """The same inputs with every tensor replaced."""
    mapped: Inputs = pytree.tree_map_only(torch.Tensor, function, inputs)
    return mapped


def batch_size(inputs: Inputs) -> int:
    """Length of the batch axis, 1 where no tensor has an axis."""
    return next((int(t.shape[0]) for t in tensors(inputs) if t.ndim), 1)
