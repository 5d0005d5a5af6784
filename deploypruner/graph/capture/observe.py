"""Watch a model run: which layers run on which inputs, and what its matrix products cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploypruner.errors import TraceError
from deploypruner.graph.inputs import Inputs, batch_size, call, map_tensors, resized, tensors
from deploypruner.graph.reference import said

# Inputs each path is tried on: a condition may depend on a statistic that masking and removing change differently.
_CASES = 3

_CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
_TRANSPOSED = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)


@dataclass(frozen=True)
class Product:
    """One call of a convolution or linear layer.

    Args:
        weight: Its weight.
        outer: Lengths of the axes that every entry of the weight is used over.
    """

    weight: Tensor
    outer: tuple[int, ...]

    @property
    def macs(self) -> int:
        """Multiply-adds over the whole batch."""
        return prod(self.outer) * self.weight.numel()


class Products(TorchFunctionMode):
    """While active, every convolution and linear layer is recorded in `found`, called as a module or not."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is nn.functional.linear:
            self._add(args, kwargs, tuple(out.shape[:-1]))
        elif func in _CONVOLUTIONS:
            weight = _argument(args, kwargs, 1, "weight")
            self._add(
                args, kwargs, (*out.shape[: out.ndim - weight.ndim + 1], *out.shape[out.ndim - weight.ndim + 2 :])
            )
        elif func in _TRANSPOSED:
            x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
            self._add(args, kwargs, (*x.shape[: x.ndim - weight.ndim + 1], *x.shape[x.ndim - weight.ndim + 2 :]))
        return out

    def _add(self, args: Any, kwargs: Any, outer: tuple[int, ...]) -> None:
        self.found.append(Product(_argument(args, kwargs, 1, "weight"), outer))


def _argument(args: Any, kwargs: Any, position: int, name: str) -> Any:
    return args[position] if len(args) > position else kwargs[name]


def layers_run(model: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """Names of the modules with parameters of their own, in the order they ran."""
    names: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
        if module._parameters
    ]
    try:
        with torch.no_grad():
            call(model, inputs)
    finally:
        for handle in handles:
            handle.remove()
    return tuple(names)


def variations(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs, then others of the same kind that may lead a model along other paths: noise, signs and scales."""
    yield inputs
    generator = torch.Generator().manual_seed(0)

    def noise(tensor: Tensor) -> Tensor:
        spread = float(tensor.double().std(correction=0)) or 1.0
        drawn = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        return tensor.mean() + spread * drawn.to(tensor.dtype)

    changes = (noise, torch.neg, torch.zeros_like, lambda t: t * 4, lambda t: t / 4, lambda t: t + 1, lambda t: t - 1)
    for change in changes:
        yield map_tensors(lambda t, f=change: f(t) if t.is_floating_point() else t, inputs)  # type: ignore[misc]


def paths_through(module: nn.Module, inputs: Inputs) -> dict[tuple[str, ...], list[Inputs]]:
    """Layers run -> some inputs that made them run, the inputs as given first.

    Raises:
        TraceError: The model does not run on the inputs as given.
    """
    found: dict[tuple[str, ...], list[Inputs]] = {}
    for number, case in enumerate(variations(inputs)):
        try:
            known = found.setdefault(layers_run(module, case), [])
        except Exception as error:  # a variation may be no valid input
            if number == 0:
                raise TraceError(f"the model does not run on the example inputs: {said(error)}") from error
            continue
        if len(known) < _CASES:
            known.append(case)
    return found


def check_deterministic(module: nn.Module, inputs: Inputs) -> None:
    """Refuse a model that draws random numbers in eval mode.

    Raises:
        TraceError: Two runs on the same inputs differ.
    """
    with torch.no_grad():
        first, second = tensors(call(module, inputs)), tensors(call(module, inputs))
    if any(not torch.equal(a, b) for a, b in zip(first, second, strict=True) if not a.isnan().any()):
        raise TraceError("the model gives other outputs every time it is called, so nothing can be proved about it")


def runs_at_other_sizes(module: nn.Module, inputs: Inputs) -> bool:
    """Is one more sample just one more output?"""
    size = batch_size(inputs)
    try:
        with torch.no_grad():
            have, more = (tensors(call(module, case)) for case in (inputs, resized(inputs, size + 1)))
    except Exception:  # noqa: BLE001 - whatever the user's forward raises means "no"
        return False
    return [(size + 1, *t.shape[1:]) for t in have] == [tuple(t.shape) for t in more]
