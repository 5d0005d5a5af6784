"""Weight files: read without running code, fitted to a model, and explained where they do not fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251 - the exception that torch.load raises, nothing is unpickled

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from deploypruner.errors import InputError, nearest
from deploypruner.reading import check_present
from deploypruner.sources.checkpoint import Fit, fits, preferred, states
from deploypruner.sources.foreign import first_line, foreign
from deploypruner.sources.named import weights_file
from deploypruner.sources.torch_file import DAMAGE, Kind, kind_of

_AGAIN = "copy or download it again"
# Settings that training scripts save beside the weights. Whatever they hold is dropped: a stand-in is made in their
# place, and the classes themselves are never imported.
_SETTINGS = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta"),
    *("pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath"),
    *("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar"),
    *("numpy.ndarray", "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig", "omegaconf.nodes.AnyNode", "typing.Any"),
    *(f"{builtins}.{name}" for builtins in ("builtins", "__builtin__") for name in ("list", "dict", "int", "float")),
)
# Dicts of other classes become plain ones.
_MAPPINGS = (
    *("collections.defaultdict", "lightning_fabric.utilities.data.AttributeDict"),
    *("lightning.fabric.utilities.data.AttributeDict", "pytorch_lightning.utilities.parsing.AttributeDict"),
)


class _Dropped:
    """In the place of any of `_SETTINGS`: takes whatever a file gives it, and keeps nothing."""

    def __new__(cls, *_: object) -> _Dropped:
        """Ignore the arguments."""
        return super().__new__(cls)

    def __init__(self, *_: object) -> None:
        """Ignore the arguments."""

    def __setstate__(self, _: object) -> None:
        """Ignore the state."""


class _Plain:
    """In the place of any of `_MAPPINGS`: a dict."""

    def __new__(cls, *_: object) -> dict[str, object]:  # type: ignore[misc]
        """Torch's unpickler fills plain dicts only."""
        return {}


def load_weights(module: nn.Module, path: Path) -> tuple[str, ...]:
    """Load the weights in `path` into `module`, in place.

    Args:
        module: The model the weights belong to.
        path: `.safetensors`, or a checkpoint written by torch.save: a state dict, alone or under any keys, its names
            behind a common prefix or wrappers ("module.", "_orig_mod."). Of several that fit, the average (EMA) is
            taken; "file.pth#key" asks for another.

    Returns:
        Remarks: which of several was taken, and what was left out.

    Raises:
        InputError: The file is missing, damaged, holds no weights, or does not fit the model; or several fit.
    """
    path, asked = weights_file(path)
    held = read_weights(path)
    if not holds_weights(held):
        raise InputError(
            f"weights '{path}' hold no state dict", hint="save them with torch.save(model.state_dict(), 'weights.pt')"
        )
    own = module.state_dict()
    found = fits(held, own)
    if not found[0].exact:
        raise _misfit(path, found[0], own)
    chosen = _chosen(path, found, asked)
    with foreign(f"weights '{path}' cannot be copied into the model:", hint="save dense tensors of its own types"):
        module.load_state_dict(chosen.state, strict=False)
    remarks = []
    if len(found) > 1:
        others = " and ".join(_quoted(fit) for fit in found if fit is not chosen)
        remarks.append(
            f"of the weights in '{path}' those of {_quoted(chosen)} were taken; {others} would fit too: "
            f"--weights '{path}#KEY'"
        )
    if chosen.beside:
        remarks.append(f"{chosen.beside} tensors of '{path}' lie outside '{chosen.label}' and were not read")
    return tuple(remarks)


def holds_weights(held: object) -> bool:
    """Is there a dict of named tensors in what a file held?"""
    return any(True for _ in states(held))


def read_weights(path: Path) -> object:
    """What a weight file holds: a dict of tensors, or anything around one; see `load_weights`."""
    check_present(path, what="weights")
    if path.suffix != ".safetensors":
        return read_without_code(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise InputError(f"weights '{path}' are truncated or corrupt: {first_line(error)}", hint=_AGAIN) from error


def read_without_code(path: Path) -> object:
    """Return what torch.load(weights_only=True) reads.

    Raises:
        InputError: The file needs code to load, or is damaged.
    """
    kind = kind_of(path)
    if kind not in (Kind.ZIP, Kind.LEGACY):
        raise InputError(f"'{path}' is {kind.value}", hint="give .safetensors, or a state dict saved by torch.save")
    try:
        return load_plain(path)
    except UnpicklingError as error:
        named = unknown_type(error)
        raise InputError(
            f"'{path}' holds pickled Python objects beside its tensors{f' ({named})' if named else ''}, "
            "and unpickling can run any code",
            hint="where you trust it, load it and save the tensors alone: "
            "torch.save(model.state_dict(), 'weights.pt')",
        ) from error
    except DAMAGE as error:
        raise InputError(f"'{path}' is truncated or corrupt: {first_line(error)}", hint=_AGAIN) from error


def load_plain(path: Path) -> object:
    """torch.load of tensors and plain containers; settings that training scripts add become stand-ins.

    Raises:
        UnpicklingError: The file needs another class to load.
    """
    known = [*((_Dropped, name) for name in _SETTINGS), *((_Plain, name) for name in _MAPPINGS)]
    with torch.serialization.safe_globals(known):  # type: ignore[arg-type]  # pairs name a class that is not imported
        return torch.load(path, map_location="cpu", weights_only=True)


def unknown_type(error: UnpicklingError) -> str:
    """The class or function that a file asked for, "" where torch does not say."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else ""


def _chosen(path: Path, found: list[Fit], asked: str) -> Fit:
    """The one that is asked for, or preferred.

    Raises:
        InputError: None of them, or several.
    """
    left = [fit for fit in found if fit.named(asked)] if asked else preferred(found)
    if not left:
        raise InputError(
            f"weights '{path}' hold nothing that fits the model under '{asked}'",
            hint=nearest(asked, labels)
            if (labels := [fit.label for fit in found if fit.label])
            else f"leave #{asked} out",
        )
    if len(left) > 1:
        raise InputError(
            f"{len(left)} sets of weights in '{path}' fit the model: {', '.join(_quoted(fit) for fit in left)}",
            hint=f"name one: --weights '{path}#{left[-1].label}'",
        )
    return left[0]


def _quoted(fit: Fit) -> str:
    return f"'{fit.label}'" if fit.label else "the file's top level"


def _misfit(path: Path, fit: Fit, own: Mapping[str, object]) -> InputError:
    """How the state that comes closest differs from the model, and what that tells."""
    missing, unexpected, reshaped = fit.missing, fit.unexpected, fit.reshaped
    parts = [f"{len(missing)} missing (first '{missing[0]}')"] if missing else []
    parts += [f"{len(unexpected)} unexpected (first '{unexpected[0]}')"] if unexpected else []
    if reshaped:
        name = reshaped[0]
        parts.append(f"{len(reshaped)} of another shape (first '{name}': {_difference(fit.state[name], own[name])})")
    if not fit.state:
        hint = "no name agrees: the file is of another architecture, or of code that names the layers otherwise"
    elif reshaped and not (missing or unexpected):
        hint = "make the model with the sizes of the file, such as its number of classes"
    else:
        hint = "check that the file was saved from this architecture with these options"
    where = f"weights '{path}' do not fit the model" + (f", closest under '{fit.label}'" if fit.label else "")
    return InputError(f"{where}: {', '.join(parts)}", hint=hint)


def _difference(given: Tensor, own: object) -> str:
    assert isinstance(own, Tensor), "only tensors have shapes to differ in"
    if given.shape == own.shape:
        return f"file {given.dtype}, model {own.dtype}".replace("torch.", "")
    return f"file {list(given.shape)}, model {list(own.shape)}"
