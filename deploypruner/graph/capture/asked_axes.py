"""Open axes as they were asked for, on the inputs of a model: text as on the command line, or torch.export's form."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from deploypruner.errors import InputError, nearest
from deploypruner.graph.inputs import Inputs, tensors
from deploypruner.graph.open_axes import Place
from deploypruner.recipe.dynamic import HINT, Asked, Request, checked, parse


def argument_names(model: nn.Module | ExportedProgram, inputs: Inputs) -> tuple[str, ...]:
    """The name of the argument that each tensor of the inputs is in."""
    return tuple(name for name, value in _arguments(model, inputs).items() for _ in tensors(value))


def _arguments(model: nn.Module | ExportedProgram, inputs: Inputs) -> dict[str, Any]:
    """Name of every argument -> its value."""
    if isinstance(inputs, dict):
        return {str(key): value for key, value in inputs.items()}
    names = list(_positional(model))
    return {names[i] if i < len(names) else f"input_{i}": value for i, value in enumerate(inputs)}


def _positional(model: nn.Module | ExportedProgram) -> Iterator[str]:
    if isinstance(model, ExportedProgram):
        yield from map(str, model.graph_signature.user_inputs)
        return
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            return
        yield parameter.name


def resolve(request: tuple[Asked, ...], names: Sequence[str], inputs: Inputs) -> dict[Place, Asked]:
    """(tensor, axis) -> what was asked for it; what names an input comes before what is for every input.

    Raises:
        InputError: No input of that name, or no input with that axis; or its length is 1, which torch.export takes
            for a constant.
    """
    found: dict[Place, Asked] = {}
    given = tensors(inputs)
    for asked in sorted(request, key=lambda one: bool(one.input)):
        if asked.input and asked.input not in names:
            raise InputError(
                f"--dynamic {asked}: the model has no input '{asked.input}'", hint=nearest(asked.input, names)
            )
        places = [i for i, name in enumerate(names) if asked.input in ("", name) and given[i].ndim > asked.axis]
        if not places:
            shapes = ", ".join(f"'{n}' {list(t.shape)}" for n, t in zip(names, given, strict=True))
            raise InputError(f"--dynamic {asked}: no input has an axis {asked.axis}: {shapes}", hint=HINT)
        for i in places:
            length = int(given[i].shape[asked.axis])
            if length < 2:
                raise InputError(
                    f"axis {asked.axis} of '{names[i]}' has length {length} in the example, which torch.export takes "
                    "for a constant",
                    hint="give an example input of length 2 or more there (--input-shape)",
                )
            if not (asked.least or 1) <= length <= (asked.most or length):
                raise InputError(
                    f"--dynamic {asked}: the example has length {length} on axis {asked.axis} of '{names[i]}', "
                    "outside of the range",
                    hint="give a range that holds the example's length",
                )
            found[i, asked.axis] = asked
    return found


def requested(dynamic_shapes: Any, model: nn.Module | ExportedProgram | None, inputs: Inputs) -> Request:
    """What an argument `dynamic_shapes` of the Python API asks for.

    Args:
        dynamic_shapes: None; text as on the command line, or several; or axes as torch.export wants them, in which
            the batch counts as open anyhow.
        model: Tells the names of positional inputs; None where it is not loaded yet.
        inputs: Example inputs; empty where they are not known yet.

    Raises:
        InputError: It is none of these, or is not in the structure of the inputs.
    """
    if dynamic_shapes is None:
        return None
    if isinstance(dynamic_shapes, str):
        return parse((dynamic_shapes,))
    if isinstance(dynamic_shapes, list | tuple) and all(isinstance(text, str) for text in dynamic_shapes):
        return parse(tuple(dynamic_shapes))
    if model is None:
        if not isinstance(dynamic_shapes, Mapping):
            raise InputError(
                "dynamic_shapes of a model that is not loaded yet need the names of its inputs",
                hint='write dynamic_shapes="2,3", or {"x": {2: Dim("height")}}',
            )
        return tuple(asked for name, given in dynamic_shapes.items() for asked in _axes_of(str(name), given))
    return tuple(_structured(dynamic_shapes, model, inputs))


def _structured(shapes: Any, model: nn.Module | ExportedProgram, inputs: Inputs) -> Iterator[Asked]:
    """torch.export's form: per argument, nested as the argument is."""
    arguments = _arguments(model, inputs)
    if isinstance(shapes, Mapping):
        named = {str(key): value for key, value in shapes.items()}
    else:
        named = dict(zip(arguments, shapes, strict=False)) if isinstance(shapes, list | tuple) else {}
    unknown = [name for name in named if name not in arguments]
    if unknown or (not isinstance(shapes, Mapping) and (not named or len(shapes) != len(arguments))):
        raise InputError(
            f"dynamic_shapes does not fit the inputs {', '.join(arguments)}"
            + (f": there is no '{unknown[0]}'" if unknown else ""),
            hint="one entry per input, as for torch.export.export; or text such as '2,3'",
        )
    for name, given in named.items():
        yield from _nested(name, given, arguments[name])


def _nested(name: str, given: Any, value: Any) -> Iterator[Asked]:
    if given is None:
        return
    if isinstance(value, Tensor):
        yield from _axes_of(name, given)
        return
    inner = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, part in inner:
        found = given.get(key) if isinstance(given, Mapping) else given[key]
        yield from _nested(name, found, part)


def _axes_of(name: str, given: Any) -> Iterator[Asked]:
    """One tensor: axis -> Dim, or a Dim for each axis."""
    if given is None:
        return
    pairs = given.items() if isinstance(given, Mapping) else enumerate(given)
    for axis, dim in pairs:
        closed = dim is None or isinstance(dim, int) or dim is Dim.STATIC
        if not isinstance(axis, int):
            raise InputError(f"dynamic_shapes of '{name}': '{axis}' is no axis", hint=HINT)
        if closed or axis == 0:
            continue
        least, most = getattr(dim, "min", None), getattr(dim, "max", None)
        least = least if isinstance(least, int) and least > 1 else None
        most = most if isinstance(most, int) and most < 2**31 else None
        yield checked(Asked(name, axis, least, most))
