"""Data in the order and the types of number that a model takes: by name where both have names, cast without loss."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from deploypruner.errors import InputError
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.sources.adapted import Adapted
from deploypruner.sources.batches import Batch, Batches, Data, Judgeable

# Pixels that were scaled to 0..1 and back are whole numbers up to rounding.
_WHOLE = 1e-3


@dataclass(frozen=True, eq=False)
class MatchedBatches(Adapted):
    """A split whose inputs are picked and cast for a model.

    Args:
        inner: The split.
        order: Which of the split's inputs each of the model's is.
        dtypes: What each is cast to.
        names: Of the model's inputs, for errors.
    """

    order: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    names: tuple[str, ...]

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """See `Batches`."""
        shapes = self.inner.input_shapes
        return None if shapes is None else tuple(shapes[i] for i in self.order)

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        for inputs, labels in self.inner.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment):
            yield self._of(inputs), labels

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        for inputs, labels in self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle):
            yield self._of(inputs), labels

    def _of(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(map(cast, (inputs[i] for i in self.order), self.dtypes, self.names))


def matched(data: Data, example_inputs: Inputs, names: tuple[str, ...] = ()) -> tuple[Data, tuple[str, ...]]:
    """Bring data to the inputs of a model.

    Args:
        data: As it was loaded.
        example_inputs: Of the model.
        names: Of the model's inputs, from `input_names`; empty where they are not known.

    Returns:
        The data, as it was where nothing differs, and remarks on what was cast or left out.

    Raises:
        InputError: Samples are dicts and their keys are not the model's inputs; or, when they are read, a value
            has no counterpart in the model's type.
    """
    taken = tensors(example_inputs)
    names = names if len(names) == len(taken) else tuple(f"input {i}" for i in range(len(taken)))
    remarks: list[str] = []
    train = _split(data.train, taken, names, remarks)
    val = train if data.val is data.train else _split(data.val, taken, names, remarks)
    if train is data.train and val is data.val:
        return data, ()
    return replace(data, train=train, val=val), tuple(dict.fromkeys(remarks))


def input_names(model: nn.Module | ExportedProgram, example_inputs: Inputs) -> tuple[str, ...]:
    """Argument names of a model, where every argument is one tensor; empty otherwise."""
    if isinstance(example_inputs, dict):
        names = list(example_inputs)
    elif isinstance(model, ExportedProgram):
        names = list(model.graph_signature.user_inputs)
    else:
        names = argument_names(model)[: len(example_inputs)]
    return tuple(map(str, names)) if len(names) == len(tensors(example_inputs)) else ()


def argument_names(model: nn.Module) -> list[str]:
    """What its forward takes, without `*args`."""
    return [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind is not p.VAR_POSITIONAL]


def _split(batches: Batches, taken: list[Tensor], names: tuple[str, ...], remarks: list[str]) -> Batches:
    keys = getattr(batches, "keys", ())
    order = tuple(range(len(taken)))
    if len(keys) > 1:
        lacking = [name for name in names if name not in keys]
        if lacking:
            raise InputError(
                f"the data gives dicts of {', '.join(keys)}; the model's input '{lacking[0]}' is not among them",
                hint=f"give them the names of the model's inputs: {', '.join(names)}",
            )
        order = tuple(keys.index(name) for name in names)
        if left := [key for key in keys if key not in names]:
            remarks.append(f"of the data, {', '.join(left)} are left out: the model takes {', '.join(names)} alone")
    first = next(iter(batches.epoch(batch_size=1)), None)
    if first is not None and 0 < len(first[0]) < len(taken):
        raise InputError(
            f"the model takes {len(taken)} inputs, and the data gives {len(first[0])}",
            hint="the last of a tuple is the labels: yield ((first, second), labels), with None where there are none",
        )
    if first is None or max(order, default=0) >= len(first[0]):
        return batches  # nothing to compare: whoever checks the shapes says so
    if len(taken) > 1:
        _check_places([first[0][i] for i in order], taken, names, keyed=len(keys) > 1)
    given = tuple(first[0][i].dtype for i in order)
    dtypes = tuple(t.dtype for t in taken)
    for name, old, new in zip(names, given, dtypes, strict=True):
        if old != new and old.is_floating_point != new.is_floating_point:
            remarks.append(
                f"{name} of the data is converted from {_text(old)} to {_text(new)}, which the model takes"
            )
    if order == tuple(range(len(first[0]))) and given == dtypes:
        return batches
    made = MatchedBatches(batches, order, dtypes, names)
    next(made.epoch(batch_size=1), None)  # a wrong type is said here, not in the middle of training
    return made


def _check_places(given: list[Tensor], taken: list[Tensor], names: tuple[str, ...], *, keyed: bool) -> None:
    """Refuse inputs in another order, or under each other's names."""
    found, wanted = ([list(x.shape[1:]) for x in values] for values in (given, taken))
    if found == wanted or sorted(found) != sorted(wanted):
        return
    told = " and ".join(
        f"{shape} for '{name}', which takes {own}"
        for name, shape, own in zip(names, found, wanted, strict=True)
        if shape != own
    )
    where = (
        f"name them so: {', '.join(f'{name} {shape}' for name, shape in zip(names, wanted, strict=True))}"
        if keyed
        else f"yield (({', '.join(names)}), labels), with None where there are no labels"
    )
    raise InputError(f"the data gives its inputs in another order than the model's: {told}", hint=where)


def cast(value: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """The same numbers in another type.

    Raises:
        InputError: A number that the type cannot hold.
    """
    if value.dtype == dtype:
        return value
    if dtype.is_floating_point or dtype.is_complex:
        return value.to(dtype)
    given, value = value.dtype, value if value.is_floating_point() else value.long()
    whole = value.round() if value.is_floating_point() else value
    limits = torch.iinfo(dtype) if dtype != torch.bool else None
    low, high = (limits.min, limits.max) if limits else (0, 1)
    wrong = (whole < low) | (whole > high) | ((whole - value).abs() > _WHOLE if value.is_floating_point() else False)
    if wrong.any():
        raise InputError(
            f"the data gives {float(value[wrong][0]):g} ({_text(given)}) for {name}, and the model takes "
            f"{_text(dtype)}",
            hint=f"give whole numbers from {low} to {high}" if high < 1 << 32 else "give whole numbers",
        )
    return whole.to(dtype)


def _text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
