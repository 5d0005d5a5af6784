"""Weight files: read without running code, fitted to a model, and explained where they do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception that torch.load raises, nothing is unpickled

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deploypruner.errors import InputError
from deploypruner.sources.foreign import first_line, foreign
from deploypruner.sources.torch_file import DAMAGE, Kind, check_present, kind_of

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_AGAIN = "copy or download it again"
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile


def load_weights(module: nn.Module, path: Path) -> None:
    """Load the weights in `path` into `module`, in place.

    Args:
        module: The model the weights belong to.
        path: `.safetensors`, or a state dict written by torch.save; wrapped in {"state_dict": ...},
            {"model": ...} or {"model_state_dict": ...}, or prefixed with "module.", is accepted.

    Raises:
        InputError: The file is missing, damaged, not a state dict, or does not fit the model.
    """
    state = read_weights(path)
    own = module.state_dict()
    # Counters that older checkpoints lack; no output depends on them in eval mode.
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    reshaped = [n for n in own if n in state and isinstance(own[n], Tensor) and own[n].shape != state[n].shape]
    if missing or unexpected or reshaped:
        parts = [f"{len(missing)} missing (first '{missing[0]}')"] if missing else []
        parts += [f"{len(unexpected)} unexpected (first '{unexpected[0]}')"] if unexpected else []
        if reshaped:
            name = reshaped[0]
            shapes = f"file {list(state[name].shape)}, model {list(own[name].shape)}"
            parts.append(f"{len(reshaped)} of another shape (first '{name}': {shapes})")
        raise InputError(
            f"weights '{path}' do not fit the model: {', '.join(parts)}",
            hint="check that the file was saved from this architecture with this number of classes",
        )
    with foreign(f"weights '{path}' cannot be copied into the model:", hint="save dense tensors of its own types"):
        module.load_state_dict(state, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a weight file by name; see `load_weights`."""
    check_present(path, what="weights")
    if path.suffix == ".safetensors":
        try:
            return dict(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            raise InputError(
                f"weights '{path}' are truncated or corrupt: {first_line(error)}", hint=_AGAIN
            ) from error
    state = plain_tensors(read_without_code(path))
    if state is None:
        raise InputError(
            f"weights '{path}' hold no state dict", hint="save them with torch.save(model.state_dict(), 'weights.pt')"
        )
    return state


def read_without_code(path: Path) -> object:
    """Return what torch.load(weights_only=True) reads.

    Raises:
        InputError: The file needs code to load, or is damaged.
    """
    kind = kind_of(path)
    if kind not in (Kind.ZIP, Kind.LEGACY):
        raise InputError(f"'{path}' is {kind.value}", hint="give .safetensors, or a state dict saved by torch.save")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise InputError(
            f"'{path}' holds pickled Python objects beside its tensors, and unpickling can run any code",
            hint="save the tensors alone with torch.save(model.state_dict(), 'weights.pt')",
        ) from error
    except DAMAGE as error:
        raise InputError(f"'{path}' is truncated or corrupt: {first_line(error)}", hint=_AGAIN) from error


def plain_tensors(held: object) -> dict[str, Tensor] | None:
    """Return the state dict in what a file held, unwrapped and without a common prefix; None if there is none."""
    if not isinstance(held, Mapping):
        return None
    wrapped = [held[wrapper] for wrapper in _WRAPPERS if isinstance(held.get(wrapper), Mapping)]
    state: dict[str, Tensor] = dict(wrapped[0] if wrapped else held)
    if not state or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        return None
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
