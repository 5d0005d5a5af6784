"""Inputs of other sizes than the example's: does a graph still compute what its model does?

Sizes that forward reads from the shape of its input are numbers in a graph. Whether that matters shows when both run
on other sizes: where they agree nothing is written into the graph that depends on them, where they do not the graph
may only be given what it was traced with. "Sizes" are all axes of an input but the batch and the channels of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.export import Dim

from deploypruner.graph.capture.asked_axes import Asked
from deploypruner.graph.execute.module import Sizes, TracedModule
from deploypruner.graph.inputs import Inputs, batch_size, resized, tensors
from deploypruner.graph.open_axes import OpenAxis, Place, shapes_with, with_lengths
from deploypruner.graph.reference import Reference, run

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


def all_sizes(inputs: Inputs) -> dict[Place, Asked | None]:
    """Every size that torch.export may leave open; it takes a length of 1 for a constant."""
    return {
        (number, axis): None
        for number, tensor in enumerate(tensors(inputs))
        for axis in size_axes(tensor)
        if tensor.shape[axis] > 1
    }


def open_sizes(inputs: Inputs, asked: Mapping[Place, Asked | None], *, batch: bool = True) -> Any:
    """Dynamic shapes for torch.export: the batch, and the asked axes as far as the model leaves them open."""
    dims = {place: Dim.AUTO if one is None else Dim.AUTO(min=one.least, max=one.most) for place, one in asked.items()}
    return shapes_with(inputs, dims, batch=batch)


def agrees(module: TracedModule, reference: Reference, inputs: Inputs) -> bool | None:
    """Does the graph compute what the model does at every other size the model takes? None where it takes none."""
    found = [agrees_at(module, reference, c) for c in other_sizes(resized(inputs, max(2, batch_size(inputs))))]
    return False if False in found else True if True in found else None


def agrees_at(module: TracedModule, reference: Reference, inputs: Inputs) -> bool | None:
    """Does the graph compute on these inputs what the model does? None where the model does not take them."""
    try:
        wanted = tensors(run(reference.module, inputs))
    except Exception:  # noqa: BLE001 - the model may not take this size, whatever it then raises
        return None
    try:
        got = tensors(run(module, inputs))
    except Exception:  # noqa: BLE001 - a constant does not fit
        return False
    return reference.compare(got, wanted).passed


def sizes_taken(module: TracedModule, inputs: Inputs, axes: Sequence[OpenAxis] = ()) -> Sizes:
    """Name of an argument -> the lengths of the size axes of its tensors; everything else is open, and `axes` are."""
    names = list(inputs) if isinstance(inputs, dict) else _argument_names(module)
    values = inputs.values() if isinstance(inputs, dict) else inputs
    opened = {(a.tensor, a.axis): a if a.limited else None for a in axes}
    counted = iter(range(len(tensors(inputs))))
    return {
        name: tuple(_lengths(t, next(counted), opened) for t in tensors(value))
        for name, value in zip(names, values, strict=False)
    }


def _argument_names(module: TracedModule) -> list[str]:
    names: list[str] = list(module.graph._codegen.pytree_info.orig_args)  # type: ignore[attr-defined]
    return names[1:] if names[:1] == ["self"] else names


def _lengths(
    tensor: Tensor, number: int, opened: Mapping[Place, OpenAxis | None]
) -> tuple[int | OpenAxis | None, ...]:
    sizes = set(size_axes(tensor))
    return tuple(
        opened[number, axis] if (number, axis) in opened else int(n) if axis in sizes else None
        for axis, n in enumerate(tensor.shape)
    )


def _with(inputs: Inputs, new: dict[int, int], last: dict[int, int] | None = None) -> Inputs:
    """Every size axis of a length in `new` at its new length; `last` says otherwise for the innermost axis."""
    lengths = {}
    for number, tensor in enumerate(tensors(inputs)):
        for axis in size_axes(tensor):
            wanted = last if last is not None and axis == tensor.ndim - 1 else new
            lengths[number, axis] = wanted.get(int(tensor.shape[axis]), int(tensor.shape[axis]))
    return with_lengths(inputs, lengths)
