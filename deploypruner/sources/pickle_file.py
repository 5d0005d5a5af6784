"""A .pt or .pth file: said to be what it is first, unpickled only with --trust-pickle."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception that torch.load raises, nothing is unpickled

import torch
from torch import nn

from deploypruner.errors import InputError
from deploypruner.sources.foreign import first_line, foreign, working_folder_importable
from deploypruner.sources.found import FoundModel, ModelRequest
from deploypruner.sources.state_dict import holds_weights, load_plain, unknown_type
from deploypruner.sources.torch_file import DAMAGE, Kind, kind_of

_REFUSED = {
    Kind.TORCHSCRIPT: "give the nn.Module it was scripted from: package.module:factory --weights FILE",
    Kind.PROGRAM: "rename it to .pt2",
    Kind.PICKLE: "load it where you trust it, then write it with torch.export.save or torch.save",
    Kind.ALLOCATES: "add --trust-pickle if you trust where it comes from",
    Kind.DAMAGED: "copy or download it again",
}


def load_pickled(request: ModelRequest) -> FoundModel:
    """Load a pickled nn.Module, if the user trusts it.

    Raises:
        InputError: The file is missing, damaged, a state dict or another format, holds something else,
            or would run code without `trust_pickle`.
    """
    path = Path(request.source)
    kind = kind_of(path)
    if kind in _REFUSED and not (kind is Kind.ALLOCATES and request.trust_pickle):
        raise InputError(f"'{path}' is {kind.value}", hint=_REFUSED[kind])
    held = _read(path, trusted=request.trust_pickle)
    if holds_weights(held):
        raise InputError(
            f"'{path}' is a state dict: weights without the model they belong to",
            hint=f"name the model's class: package.module:factory --weights {path}",
        )
    if not isinstance(held, nn.Module):
        raise InputError(
            f"'{path}' holds a {type(held).__name__}, not a model", hint="save the model itself, or name its factory"
        )
    return FoundModel(held.module if isinstance(held, nn.DataParallel) else held, path.stem)


def _read(path: Path, *, trusted: bool) -> object:
    try:
        return load_plain(path)
    except UnpicklingError as error:
        if not trusted:
            named = unknown_type(error)
            raise InputError(
                f"'{path}' is a pickled Python object{f' ({named})' if named else ''}, "
                "and unpickling can run any code that is in the file",
                hint="add --trust-pickle if you trust where it comes from; "
                "safer is package.module:factory with --weights",
            ) from error
    except DAMAGE as error:
        raise InputError(
            f"'{path}' is truncated or corrupt: {first_line(error)}", hint=_REFUSED[Kind.DAMAGED]
        ) from error
    with working_folder_importable(), foreign(f"unpickling '{path}' failed with"):
        return torch.load(path, map_location="cpu", weights_only=False)
