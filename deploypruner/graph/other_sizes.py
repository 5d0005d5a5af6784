"""Inputs of other sizes than the example's: does a graph still compute what its model does?

Sizes that forward reads from the shape of its input are numbers in a graph. Whether that matters shows when both run
on other sizes: where they agree nothing is written into the graph that depends on them, where they do not the graph
may only be given what it was traced with. "Sizes" are all axes of an input but the batch and the channels of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from deploypruner.graph.inputs import Inputs, batch_size, call, map_tensors, resized, tensors
from deploypruner.graph.module import Sizes, TracedModule
from deploypruner.graph.reference import Reference, seeded

# Images have a channel axis before their sizes; strides are powers of two up to this.
_STRIDE = 32


def size_axes(tensor: Tensor) -> range:
    """Axes of an input that are sizes: of images and volumes all after the channels, else all but the batch."""
    return range(2 if tensor.ndim >= 4 else 1, tensor.ndim)


def other_sizes(inputs: Inputs) -> Iterator[Inputs]:
    """The inputs at other sizes; axes of equal length change together, in all inputs. Values are those there were."""
    lengths = sorted({n for t in tensors(inputs) for axis in size_axes(t) if (n := int(t.shape[axis])) > 1})
    images = any(t.ndim >= 4 for t in tensors(inputs))
    if images:
        new = {n: n - _STRIDE if n > 2 * _STRIDE else 2 * n for n in lengths}
        yield _with(inputs, new)
        # Lower than wide, and odd: a model may pad to a multiple of its stride.
        yield _with(inputs, {n: m - 3 for n, m in new.items()}, new)
        return
    for n in lengths:
        for other in (n + 1, max(1, n // 2)):
            yield _with(inputs, {n: other})


def open_sizes(inputs: Inputs) -> Any:
    """Dynamic shapes for torch.export: an open batch, and every size that the model leaves open."""
    size = batch_size(inputs)

    def axes(tensor: Tensor) -> dict[int, Any] | None:
        found: dict[int, Any] = {axis: Dim.AUTO for axis in size_axes(tensor) if tensor.shape[axis] > 1}
        if tensor.ndim and tensor.shape[0] == size:
            found[0] = Dim.DYNAMIC
        return found or None

    return map_tensors(axes, inputs)


def agrees(module: TracedModule, reference: Reference, inputs: Inputs) -> bool | None:
    """Does the graph compute what the model does at every other size the model takes? None where it takes none."""
    found: bool | None = None
    for case in other_sizes(resized(inputs, max(2, batch_size(inputs)))):
        try:
            with torch.no_grad(), seeded(case, 0):
                wanted = tensors(call(reference.module, case))
        except Exception:  # noqa: BLE001 - the model may not take this size, whatever it then raises
            continue
        try:
            with torch.no_grad(), seeded(case, 0):
                got = tensors(call(module, case))
        except Exception:  # noqa: BLE001 - a constant does not fit
            return False
        if not reference.compare(got, wanted).passed:
            return False
        found = True
    return found


def sizes_taken(module: TracedModule, inputs: Inputs) -> Sizes:
    """Name of an argument -> the lengths of the size axes of its tensors, everything else open."""
    names = list(inputs) if isinstance(inputs, dict) else _argument_names(module)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    return {name: tuple(_lengths(t) for t in tensors(value)) for name, value in zip(names, values, strict=False)}


def _argument_names(module: TracedModule) -> list[str]:
    names: list[str] = list(module.graph._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]
    return names[1:] if names[:1] == ["self"] else names


def _lengths(tensor: Tensor) -> tuple[int | None, ...]:
    sizes = set(size_axes(tensor))
    return tuple(int(n) if axis in sizes else None for axis, n in enumerate(tensor.shape))


def _with(inputs: Inputs, new: dict[int, int], last: dict[int, int] | None = None) -> Inputs:
    """Every size axis of a length in `new` at its new length; `last` says otherwise for the innermost axis."""

    def one(tensor: Tensor) -> Tensor:
        for axis in size_axes(tensor):
            lengths = last if last is not None and axis == tensor.ndim - 1 else new
            have = int(tensor.shape[axis])
            if have in lengths:
                rows = torch.arange(lengths[have], device=tensor.device) % have
                tensor = tensor.detach().index_select(axis, rows)
        return tensor

    return map_tensors(one, inputs)
