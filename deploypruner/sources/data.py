"""--data as the user typed it, or what the Python API is given -> a training and a validation split."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from deploypruner.atomic import file_sha256
from deploypruner.errors import InputError
from deploypruner.reading import walk
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.arrays import from_arrays
from deploypruner.sources.batches import Batch, Batches, Data
from deploypruner.sources.factory import call_factory
from deploypruner.sources.image_folder import first_images, load_image_folder
from deploypruner.sources.loaders import from_loader
from deploypruner.sources.named import DataKind, data_kind
from deploypruner.sources.named_arrays import load_npz
from deploypruner.sources.pixels import image_size
from deploypruner.sources.preprocessing import Preprocessing

__all__ = [
    "Batch",
    "Batches",
    "Data",
    "DataSettings",
    "as_data",
    "check_labels",
    "check_shapes",
    "content_fingerprint",
    "load_data",
    "peek_shapes",
    "settings_for",
]

_PEEKED_IMAGES = 16


def load_data(source: str, settings: DataSettings | None = None, *, inputs: Collection[str] = ()) -> Data:
    """Load the data that `source` names.

    Args:
        source: Image folder, `.npz` file, or `package.module:factory` returning what `as_data` takes.
        settings: How samples are prepared; None = the defaults.
        inputs: Names of the model's inputs, where they are known: an `.npz` may hold an array for each.

    Raises:
        InputError: Anything that makes the data unusable, in the user's names and numbers.
    """
    settings = settings or DataSettings()
    kind = data_kind(source)
    if kind is DataKind.FOLDER:
        return load_image_folder(Path(source), settings)
    if kind is DataKind.NPZ:
        return load_npz(Path(source), settings, inputs=inputs)
    return replace(as_data(call_factory(source), settings), name=source.partition(":")[2])


def content_fingerprint(given: object) -> str:
    """Equal where the data is the same: a hash of bytes, or of a folder's names, sizes and times of change.

    Args:
        given: As `as_data` takes it.

    Returns:
        A hash; "" of what cannot be looked at without reading it, such as a loader or a factory.
    """
    digest = hashlib.sha256()
    if isinstance(given, str | Path):
        path = Path(given)
        if path.is_file():
            return file_sha256(path)
        if not path.is_dir():
            return ""
        for folder, folders, files in walk(path):
            folders.sort()
            for name in sorted(files):
                file = Path(folder, name)
                about = file.stat() if file.exists() else file.lstat()
                digest.update(f"{file.relative_to(path)}\0{about.st_size}\0{about.st_mtime_ns}\0".encode())
        return digest.hexdigest()
    if isinstance(given, Tensor | np.ndarray):
        array = np.ascontiguousarray(_array(given))
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
        return digest.hexdigest()
    if isinstance(given, tuple | list) and all(isinstance(item, Tensor | np.ndarray) for item in given):
        return hashlib.sha256("".join(map(content_fingerprint, given)).encode()).hexdigest()
    return ""


def as_data(given: object, settings: DataSettings | None = None) -> Data:
    """Bring what the Python API is given to data.

    Args:
        given: Data, a path, `Batches`, x or (x, y) as tensors or arrays (split by `settings.val_fraction`),
            a DataLoader or anything else that can be iterated again and yields batches, or a tuple
            (train, val) of those. One loader alone serves as both splits.
        settings: Preparation of paths and arrays; a loader's samples are only limited.

    Raises:
        InputError: It is none of these, can be read only once, or yields no batches.
    """
    settings = settings or DataSettings()
    if isinstance(given, Data):
        return given
    if isinstance(given, str | Path):
        return load_data(str(given), settings)
    if isinstance(given, Tensor | np.ndarray):
        return from_arrays({"x": _array(given)}, settings, name="arrays")
    if isinstance(given, tuple | list) and _is_x_and_y(given):
        return from_arrays({"x": _array(given[0]), "y": _array(given[1])}, settings, name="arrays")
    if isinstance(given, tuple) and len(given) == 2 and not any(map(_is_batch, given)):
        train, train_remarks = _split(given[0], "train", settings)
        val, val_remarks = _split(given[1], "val", settings)
        return Data(train, val, name="loaders", remarks=tuple(train_remarks + val_remarks))
    if isinstance(given, tuple) and len(given) == 2 and _alike(*given):
        raise InputError(
            f"the data is a pair of arrays of shapes {list(given[0].shape)} and {list(given[1].shape)}: inputs and "
            "their targets, or two batches",
            hint="give [(inputs, targets)] for the one, [batch, batch] for the other",
        )
    both, remarks = _split(given, "train", settings)
    remarks.append("one loader serves for training and validation: accuracy is measured on training samples")
    return Data(both, both, name="loader", remarks=tuple(remarks))


def settings_for(
    example_inputs: tuple[Tensor, ...], preprocessing: Preprocessing | None, settings: DataSettings | None = None
) -> DataSettings:
    """Fill in what the model says about its images; what `settings` already says is kept.

    Args:
        example_inputs: Of the model; an image is [B, 1 or 3, H, W], anything else leaves the settings alone.
        preprocessing: Of the model, None = unknown.
        settings: The user's own, None = the defaults.
    """
    settings = settings or DataSettings()
    shape = tuple(example_inputs[0].shape) if example_inputs else ()
    if len(shape) != 4 or shape[1] not in (1, 3):
        return settings
    settings = replace(settings, channels=shape[1], size=settings.size or (shape[2], shape[3]))
    if preprocessing is None:
        return settings
    own_resize = preprocessing.resize if preprocessing.resize and preprocessing.resize >= min(shape[2:]) else None
    return replace(
        settings,
        mean=settings.mean or preprocessing.mean,
        std=settings.std or preprocessing.std,
        resize=settings.resize or own_resize,
        interpolation=preprocessing.interpolation,
    )


def peek_shapes(source: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one sample of --data without its batch; none where samples differ or none is found.

    For a model whose source does not say what it takes. Images count as RGB.

    Returns:
        Name of the input -> shape; "" for the one input of data that has no names, "0", "1" ... for several.

    Raises:
        InputError: The data cannot be read.
    """
    if data_kind(source) is not DataKind.FOLDER:
        train = load_data(source).train
        keys, shapes = getattr(train, "keys", ()), train.input_shapes or ()
        if len(keys) > 1:
            return dict(zip(keys, shapes, strict=True))
        return {"": shapes[0]} if len(shapes) == 1 else {str(i): shape for i, shape in enumerate(shapes)}
    images = first_images(Path(source), _PEEKED_IMAGES)
    sizes = {image_size(image) for image in images}
    return {"": (3, *sizes.pop())} if len(sizes) == 1 else {}


def check_labels(data: Data, classes: int) -> None:
    """Check that every known label is an output of the model.

    A loader's labels are known for its first 20 batches only.

    Args:
        data: Labelled or not.
        classes: Number of the model's outputs.

    Raises:
        InputError: A label below 0, or not below `classes`; names it, its sample and the outputs.
    """
    for batches in (data.train, data.val):
        labels = batches.known_labels()
        if labels is None or not len(labels):
            continue
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            where = batches.origin(int((labels == wrong).nonzero()[0]))
            raise InputError(
                f"label {wrong} of {where} is outside the model's {classes} outputs (labels must lie in "
                f"0..{classes - 1}, the data has {low}..{high})",
                hint="use the model's own classes, numbered from 0",
            )


def check_shapes(data: Data, example_inputs: tuple[Tensor, ...]) -> None:
    """Check that the data has what the model takes: as many inputs, each of the example's shape.

    Raises:
        InputError: They differ; names both shapes, without the batch.
    """
    taken = tuple(tuple(value.shape[1:]) for value in example_inputs)
    for name, batches in (("train", data.train), ("val", data.val)):
        given = batches.input_shapes
        if given is not None and given != taken:
            with_batch = " ".join(f"--input-shape {','.join(map(str, (1, *shape)))}" for shape in given)
            raise InputError(
                f"a sample of the {name} data has shape {_text(given)}, the model's example input {_text(taken)}",
                hint=f"{with_batch} if the model can take it; otherwise prepare the data for the model",
            )


def _split(given: object, name: str, settings: DataSettings) -> tuple[Batches, list[str]]:
    if isinstance(given, Batches):
        return given, []
    if not isinstance(given, Iterable):
        raise InputError(
            f"data of type {type(given).__name__} cannot be read",
            hint="give a path, (x, y), a DataLoader, or (train_loader, val_loader)",
        )
    return from_loader(given, name, limit=settings.limit)


def _is_x_and_y(given: tuple[object, ...] | list[object]) -> bool:
    """Whether these are inputs and labels, and not two batches of inputs."""
    if len(given) != 2:
        return False
    x, y = given
    return isinstance(x, Tensor | np.ndarray) and isinstance(y, Tensor | np.ndarray) and y.ndim < x.ndim


def _alike(x: object, y: object) -> bool:
    """Whether these are arrays with as many samples and axes: an image and its clean form."""
    return isinstance(x, Tensor | np.ndarray) and isinstance(y, Tensor | np.ndarray) and x.shape[:1] == y.shape[:1]


def _is_batch(item: object) -> bool:
    if isinstance(item, Tensor | np.ndarray | dict):
        return True
    return isinstance(item, tuple) and bool(item) and isinstance(item[0], Tensor)


def _array(values: object) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _text(shapes: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join(str(list(shape)) for shape in shapes) or "none"
