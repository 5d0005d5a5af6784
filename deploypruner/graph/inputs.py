"""Example inputs in any form a forward takes: positional or keyword, nested, with flags beside the tensors.

Everywhere in the project `Inputs` is a tuple of positional arguments or a dict of keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from deploypruner.errors import InputError, said_by

Inputs: TypeAlias = tuple[Any, ...] | dict[str, Any]

_MOST = 1 << 32  # elements of an example input


def as_inputs(example_inputs: Any) -> Inputs:
    """One tensor -> a tuple of it; a tuple or a dict of keyword arguments stays.

    Other mappings with string keys (a tokenizer's BatchEncoding) count as keyword arguments too. A list of one counts
    as a tuple of one; what a longer list means cannot be known, and guessing would trace another model.

    Raises:
        InputError: A list of several.
    """
    if isinstance(example_inputs, list) and len(example_inputs) > 1:
        raise InputError(
            f"the example inputs are a list of {len(example_inputs)}: several inputs, several samples, a batch with "
            "its labels, or one input that is a list",
            hint="pass a tuple of the inputs; samples stacked to one tensor; one input that is a list as (list,)",
        )
    if isinstance(example_inputs, dict):
        return dict(example_inputs)
    if hasattr(example_inputs, "keys") and hasattr(example_inputs, "__getitem__"):
        return {str(key): example_inputs[key] for key in example_inputs.keys()}  # noqa: SIM118 - it is no dict
    return tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)


def call(module: nn.Module, inputs: Inputs) -> Any:
    """Run a module on its inputs."""
    return module(**inputs) if isinstance(inputs, dict) else module(*inputs)


def as_arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """(args, kwargs) of the call."""
    return ((), inputs) if isinstance(inputs, dict) else (inputs, {})


def tensors(value: Any) -> list[Tensor]:
    """All tensors inside nested inputs or outputs, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def map_tensors(function: Callable[[Tensor], Any], inputs: Inputs) -> Inputs:
    """The same inputs with every tensor replaced."""
    mapped: Inputs = pytree.tree_map_only(torch.Tensor, function, inputs)
    return mapped


def filled(inputs: Inputs, values: Sequence[Tensor]) -> Inputs:
    """The same inputs with their tensors replaced by `values`, in order.

    Raises:
        InputError: More or fewer values than tensors.
    """
    wanted = len(tensors(inputs))
    if len(values) != wanted:
        raise InputError(
            f"{len(values)} tensors were given to a model that takes {wanted}",
            hint="give one tensor per input, in the order of the example inputs",
        )
    feeds = iter(values)
    return map_tensors(lambda _: next(feeds), inputs)


def batch_size(inputs: Inputs) -> int:
    """Length of the batch axis, 1 where no tensor has an axis."""
    return next((int(t.shape[0]) for t in tensors(inputs) if t.ndim), 1)


def carries_batch(tensor: Tensor, inputs: Inputs) -> bool:
    """Is axis 0 of this input the batch: as long as that of the first tensor?"""
    return tensor.ndim > 0 and tensor.shape[0] == batch_size(inputs)


def resized(inputs: Inputs, size: int) -> Inputs:
    """The same inputs with `size` samples: cut, or repeated from the first on; tensors without a batch stay."""
    have = batch_size(inputs)
    if have in (0, size):
        return inputs

    def one(tensor: Tensor) -> Tensor:
        rows = torch.arange(size, device=tensor.device) % have
        return tensor.detach().index_select(0, rows) if carries_batch(tensor, inputs) else tensor

    return map_tensors(one, inputs)


def noise_like(inputs: Inputs, size: int, generator: torch.Generator) -> list[NDArray[Any]]:
    """One array per input with `size` samples: standard normal for floating ones, the example's own otherwise."""
    arrays = []
    for example, value in zip(tensors(inputs), tensors(resized(inputs, size)), strict=True):
        if carries_batch(example, inputs) and value.is_floating_point():
            value = torch.randn(value.shape, generator=generator).to(value.dtype)
        arrays.append(np.asarray(value.detach().numpy(), order="C"))
    return arrays


def to_json(inputs: Inputs, *, dynamic_batch: bool) -> Any:
    """Structure, shapes and dtypes of inputs as JSON, enough for `from_json` to make others like them.

    A tensor is {"shape", "dtype"} with null for a dynamic batch, a tuple {"tuple"}, keywords or a dict {"dict"};
    lists and constants stay as they are.
    """
    return _to_json(inputs, batch_size(inputs) if dynamic_batch else None)


def _to_json(value: Any, batch: int | None) -> Any:
    if isinstance(value, Tensor):
        shape = [None if axis == 0 and n == batch else int(n) for axis, n in enumerate(value.shape)]
        return {"shape": shape, "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, list):
        return [_to_json(item, batch) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_to_json(item, batch) for item in value]}
    if isinstance(value, dict):
        return {"dict": {str(key): _to_json(item, batch) for key, item in value.items()}}
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known else {"unknown": type(value).__name__}


def from_json(document: Any, *, batch: int) -> Inputs:
    """Zeros (a valid index into any table) in the structure that `to_json` described.

    Raises:
        InputError: The original inputs held an object that JSON cannot hold, or the document is no description.
    """
    try:
        inputs = _from_json(document, batch)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError) as error:
        raise InputError(
            f"the plan's description of its inputs is damaged: {said_by(error)}", hint="compile again"
        ) from None
    if not isinstance(inputs, tuple | dict):
        raise InputError("the plan does not say what inputs its model takes", hint="compile the model again")
    return inputs


def _from_json(document: Any, batch: int) -> Any:
    if isinstance(document, list):
        return [_from_json(item, batch) for item in document]
    if not isinstance(document, dict):
        return document
    kind = next(iter(document), "")
    if kind == "shape":
        shape = [batch if size is None else size for size in document["shape"]]
        dtype = getattr(torch, document["dtype"])
        if not isinstance(dtype, torch.dtype) or any(type(n) is not int for n in shape) or prod(shape) > _MOST:
            raise ValueError(f"{shape} of {document['dtype']} is no tensor to make")
        return torch.zeros(shape, dtype=dtype)
    if kind == "tuple":
        return tuple(_from_json(item, batch) for item in document["tuple"])
    if kind == "dict":
        return {key: _from_json(item, batch) for key, item in document["dict"].items()}
    raise InputError(
        f"the model was traced with an input of type {document.get(kind)}, which a plan cannot rebuild",
        hint="trace the model again and apply the plan to it",
    )


def described(inputs: Inputs) -> str:
    """Shapes and dtypes for a message: "[2, 3, 8, 8] float32 and [2] int64"."""
    return " and ".join(f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}".strip() for t in tensors(inputs))


def raw_bytes(tensor: Tensor) -> bytes:
    """Its numbers as they lie in memory, row after row, for a hash; any type, any stride."""
    flat = tensor.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
