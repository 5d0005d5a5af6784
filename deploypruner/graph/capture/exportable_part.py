"""The largest part of a model that can be exported, when the whole cannot: the backbone of a detector."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.errors import TraceError
from deploypruner.graph.execute.shared_weights import sharing_copy
from deploypruner.graph.inputs import Inputs, call, tensors

# A part with less of the parameters than this is not worth the name; each export takes seconds.
_SMALLEST_SHARE, _MOST_ATTEMPTS = 0.5, 6


@dataclass(frozen=True)
class ExportablePart:
    """A sub-module that can be exported.

    Args:
        name: Its name in the model.
        holder: A module that does what the part does, with the part's state under its full names.
        inputs: What the part was called with when the model ran on the example inputs.
        share: Of the model's parameters, between 0 and 1.
        result: What `attempt` made of it.
    """

    name: str
    holder: nn.Module
    inputs: Inputs
    share: float
    result: Any


class Holder(nn.Module):
    """Empty modules around one part of a model, so that its state keeps the names it has in the whole.

    Args:
        name: Name of the part in the model, dots and all.
        part: The part itself.

    Attributes:
        name: The same.
    """

    def __init__(self, name: str, part: nn.Module) -> None:
        super().__init__()
        self.name = name
        owner: nn.Module = self
        *outer, leaf = name.split(".")
        for step in outer:
            owner.add_module(step, nn.Module())
            owner = owner.get_submodule(step)
        owner.add_module(leaf, part)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the part, whatever it takes."""
        return self.get_submodule(self.name)(*args, **kwargs)

    forward = _call


def largest_part(model: nn.Module, inputs: Inputs, attempt: Callable[[nn.Module, Inputs], Any]) -> ExportablePart:
    """Try the sub-modules of a model, the one with the most parameters first, until one can be traced.

    Args:
        model: The user's module; it is not changed.
        inputs: What it runs on.
        attempt: Traces a module, or raises TraceError.

    Raises:
        TraceError: No part with half of the parameters can be traced.
    """
    calls = _calls(model, inputs)
    whole = _size(model)
    order = [(-_size(m), number, name) for number, (name, m) in enumerate(model.named_children())]
    heapq.heapify(order)
    tried = 0
    while order:
        size, number, name = heapq.heappop(order)
        share = -size / max(whole, 1)
        if share < _SMALLEST_SHARE or tried == _MOST_ATTEMPTS:
            break
        part = model.get_submodule(name)
        if name in calls:
            tried += 1
            holder = Holder(name, part)
            try:
                return ExportablePart(name, holder, calls[name], share, attempt(holder, calls[name]))
            except TraceError:
                pass
        for child_name, child in part.named_children():
            heapq.heappush(order, (-_size(child), number, f"{name}.{child_name}"))
    raise TraceError(
        f"no part of the model with {100 * _SMALLEST_SHARE:.0f} % of its parameters can be exported and pruned"
    )


def _calls(model: nn.Module, inputs: Inputs) -> dict[str, Inputs]:
    """Sub-modules that run exactly once, with tensors, and what they are called with."""
    found: dict[str, list[Inputs]] = {}

    def remember(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
            found.setdefault(name, []).append(given[0] if not kwargs else given[1] if not args else ())

        return hook

    module = sharing_copy(model)
    for name, child in module.named_modules():
        if name:
            child.register_forward_pre_hook(remember(name), with_kwargs=True)
    with torch.no_grad():
        call(module, inputs)
    return {name: given[0] for name, given in found.items() if len(given) == 1 and tensors(given[0])}


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
