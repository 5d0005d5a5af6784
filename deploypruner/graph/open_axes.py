"""Axes of the inputs that stay open beside the batch: what is known of them, and inputs of other lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.export import Dim

from deploypruner.graph.inputs import Inputs, carries_batch, map_tensors, tensors

# Number of axes -> what people call each of them.
_NAMES = {
    2: {1: "sequence"},
    3: {1: "sequence", 2: "length"},
    4: {2: "height", 3: "width"},
    5: {2: "depth", 3: "height", 4: "width"},
}


Place: TypeAlias = tuple[int, int]
"""Number of a tensor among all tensors of the inputs, and an axis of it."""


@dataclass(frozen=True)
class OpenAxis:
    """An axis of an input that may have another length than the example's, and was seen to.

    Args:
        input: Name of the argument.
        tensor: Number of the tensor among all tensors of the inputs.
        axis: Of that tensor.
        name: Axes of one name always have one length: "height", "sequence".
        length: The example's.
        other: Another length, with which the graph computes what the model does.
        least: Shortest length, None where nobody set one.
        most: Longest length, None without a limit.
        step: Lengths are the example's and those any number of steps from it.
    """

    input: str
    tensor: int
    axis: int
    name: str
    length: int
    other: int
    least: int | None = None
    most: int | None = None
    step: int = 1

    @property
    def where(self) -> str:
        """In a person's words: "axis 2 of 'x'"."""
        return f"axis {self.axis} of '{self.input}'"

    @property
    def lengths(self) -> str:
        """ "8 to 512", "up to 64", "any length, in steps of 2 from 32"."""
        least, most = self.least, self.most
        text = "any length" if most is None else f"up to {most}"
        if least is not None:
            text = f"{least} or more" if most is None else f"{least} to {most}"
        return f"{text}, in steps of {self.step} from {self.length}" if self.step > 1 else text

    @property
    def limited(self) -> bool:
        """Is there a length that it may not have?"""
        return self.least is not None or self.most is not None or self.step > 1

    def takes(self, length: Any) -> bool:
        """Is it a length that this axis may have?"""
        if (self.least is not None and length < self.least) or (self.most is not None and length > self.most):
            return False
        return self.step == 1 or (length - self.length) % self.step == 0


def names_of(axes: Sequence[Place], given: Sequence[Tensor], keys: Sequence[str]) -> list[str]:
    """A name for each open axis, the same where the key, what torch.export calls its length, is the same."""
    found: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for (tensor, axis), key in zip(axes, keys, strict=True):
        if key not in found:
            name = _NAMES.get(given[tensor].ndim, {}).get(axis, f"axis_{axis}")
            taken[name] += 1
            found[key] = name if taken[name] == 1 else f"{name}_{taken[name] - 1}"
    return [found[key] for key in keys]


def with_lengths(inputs: Inputs, lengths: Mapping[Place, int]) -> Inputs:
    """The inputs cut, or repeated from the first value on, to (tensor, axis) -> length."""
    counted = iter(range(len(tensors(inputs))))

    def one(tensor: Tensor) -> Tensor:
        number = next(counted)
        for axis in range(tensor.ndim):
            wanted, have = lengths.get((number, axis), tensor.shape[axis]), int(tensor.shape[axis])
            if wanted != have and have:
                tensor = tensor.detach().index_select(axis, torch.arange(wanted, device=tensor.device) % have)
        return tensor

    return map_tensors(one, inputs)


def at_other_lengths(inputs: Inputs, axes: Sequence[OpenAxis]) -> Inputs:
    """The inputs with every open axis at its other length."""
    return with_lengths(inputs, {(axis.tensor, axis.axis): axis.other for axis in axes})


def at_text(axes: Sequence[OpenAxis]) -> str:
    """The other lengths, for the name of a check: "height 24, width 36"."""
    return ", ".join(f"{name} {length}" for name, length in {a.name: a.other for a in axes}.items())


def export_shapes(inputs: Inputs, axes: Sequence[OpenAxis], *, batch: bool) -> Any:
    """Dynamic shapes for torch.export, in the structure of the inputs; None where nothing is open."""
    if not batch and not axes:
        return None
    dims = {(a.tensor, a.axis): Dim.DYNAMIC(min=a.least, max=a.most) for a in axes}
    return shapes_with(inputs, dims, batch=batch)


def shapes_with(inputs: Inputs, dims: Mapping[Place, Any], *, batch: bool) -> Any:
    """Dynamic shapes for torch.export, in the structure of the inputs: these axes, and the batch where it is open."""
    counted = iter(range(len(tensors(inputs))))

    def one(tensor: Tensor) -> dict[int, Any] | None:
        number = next(counted)
        found = {axis: dim for (place, axis), dim in dims.items() if place == number}
        if batch and carries_batch(tensor, inputs):
            found[0] = Dim.DYNAMIC
        return found or None

    return map_tensors(one, inputs)


def described(axes: Sequence[OpenAxis]) -> str:
    """For a remark: "height (axis 2 of 'x', 8 to 512), width (axis 3 of 'x', any length)"."""
    return ", ".join(f"{a.name} ({a.where}, {a.lengths})" for a in axes)


def as_json(axes: Sequence[OpenAxis]) -> list[dict[str, Any]]:
    """One entry an axis, for the manifest and the report."""
    return [
        {
            "input": a.input,
            "axis": a.axis,
            "name": a.name,
            "example": a.length,
            "checked_at": a.other,
            "min": a.least,
            "max": a.most,
            "step": a.step,
        }
        for a in axes
    ]
