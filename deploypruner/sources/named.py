"""What kind of thing MODEL, --weights and --data name, and whether it is there: known before anything is loaded."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from stat import S_ISDIR

from deploypruner.errors import InputError
from deploypruner.reading import check_present, status

_ZOOS = ("timm", "torchvision", "transformers")
_MODELS = "file.pt2, package.module:factory, timm:NAME, torchvision:NAME or transformers:DIR_OR_NAME"
_DATA = "a folder of images, an .npz with x and y or an array per input, or package.module:factory"


class ModelKind(Enum):
    """What MODEL can be."""

    PROGRAM = ".pt2"
    PICKLE = ".pt"
    TIMM = "timm"
    TORCHVISION = "torchvision"
    TRANSFORMERS = "transformers"
    FACTORY = "package.module:factory"


class DataKind(Enum):
    """What --data can be."""

    FOLDER = "folder"
    NPZ = ".npz"
    FACTORY = "package.module:factory"


def check_named(model: str, weights: Path | None, data: str | None) -> None:
    """Check that what a command names is there and of a kind that can be read; nothing is opened.

    Args:
        model: As `load_model` takes it.
        weights: As `load_model` takes them.
        data: As `load_data` takes it.

    Raises:
        InputError: It is not.
    """
    kind = model_kind(model)
    if weights is not None:
        require_takes_weights(kind, model, weights)
        weights_file(weights)
    if data is not None:
        data_kind(data)


def model_kind(source: str) -> ModelKind:
    """Tell what `source` names, as `load_model` takes it.

    Raises:
        InputError: No kind of model that can be loaded, or no file of that name.
    """
    path = Path(source)
    if path.suffix in (".onnx", ".xml", ".tflite"):
        raise InputError(
            f"'{source}' is an exported model; pruning needs the PyTorch model it came from",
            hint=f"give {_MODELS}; `deploypruner bench {source}` measures this file",
        )
    prefix, colon, rest = source.partition(":")
    if colon and prefix in _ZOOS:
        return ModelKind(prefix)
    if path.suffix == ".pt2":
        check_present(path, what="model", native=True)
        return ModelKind.PROGRAM
    if path.suffix in (".pt", ".pth"):
        check_present(path, what="model")
        return ModelKind.PICKLE
    if path.suffix == ".safetensors":
        raise InputError(
            f"'{source}' holds weights without the model they belong to",
            hint=f"name the model's class: package.module:factory --weights {source}",
        )
    if colon and prefix and rest:
        return ModelKind.FACTORY
    raise InputError(f"'{source}' is no kind of model that can be loaded", hint=f"give {_MODELS}")


def require_takes_weights(kind: ModelKind, source: str, weights: Path) -> None:
    """Refuse --weights for a file that carries its own.

    Raises:
        InputError: It does.
    """
    if kind in (ModelKind.PROGRAM, ModelKind.PICKLE):
        raise InputError(
            f"'{source}' carries its own weights, so --weights {weights} has no place to go",
            hint="--weights goes with package.module:factory, timm:NAME or torchvision:NAME",
        )


def weights_file(weights: Path) -> tuple[Path, str]:
    """Split "file.pth#key"; a file whose own name holds a "#" is taken as it is.

    Returns:
        The file; which of the state dicts in it, "" where none is asked for.

    Raises:
        InputError: There is no such file.
    """
    name, _, asked = str(weights).rpartition("#")
    path, key = (Path(name), asked) if name and not weights.exists() else (weights, "")
    check_present(path, what="weights")
    return path, key


def data_kind(source: str) -> DataKind:
    """Tell what `source` names, as `load_data` takes it.

    Raises:
        InputError: No kind of data that can be read, or nothing of that name.
    """
    found = status(Path(source), what="data")
    if found is not None and S_ISDIR(found.st_mode):
        return DataKind.FOLDER
    if Path(source).suffix == ".npz":
        check_present(Path(source), what="data")
        return DataKind.NPZ
    if found is not None:
        raise InputError(f"'{source}' is no kind of data that can be read", hint=f"give {_DATA}")
    if ":" in source:
        return DataKind.FACTORY
    raise InputError(f"no data folder or file '{source}'", hint=f"looked in {Path.cwd()}; give {_DATA}")
