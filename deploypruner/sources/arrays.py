"""Samples held in memory: .npz files, (x, y) arrays and small image folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.reading import open_archive
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.batches import Batch, Batches, Data, Judgeable, limited, sample_order, split
from deploypruner.sources.foreign import first_line, foreign
from deploypruner.sources.pixels import augmented, normalise


@dataclass(frozen=True, eq=False)
class ArrayBatches(Batches):
    """Samples in memory.

    Args:
        inputs: [N, ...]; uint8 [N, C, H, W] are images and are normalised, anything else is used as is.
        labels: [N] int64, None without labels.
        name: Of the split, for errors: "train".
        settings: Normalisation and whether images may be augmented.
        files: Where each image came from; empty = from an array.
        targets: [N, ...] labels that are no class indices, for judging answers; None without.
    """

    inputs: Tensor
    labels: Tensor | None
    name: str
    settings: DataSettings
    files: tuple[Path, ...] = ()
    targets: Tensor | None = None

    @property
    def labelled(self) -> bool:
        """See `Batches`."""
        return self.labels is not None

    @property
    def samples(self) -> int:
        """See `Batches`."""
        return self.inputs.shape[0]

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Batches`."""
        return (tuple(self.inputs.shape[1:]),)

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`; only images (uint8) are augmented."""
        generator = torch.Generator().manual_seed(seed)
        for rows in sample_order(self.samples, generator=generator, shuffle=shuffle).split(batch_size):
            values = self.inputs[rows]
            if values.dtype == torch.uint8:
                if augment and self.settings.augment:
                    values = augmented(values, generator)
                values = normalise(values, *self.settings.normalisation(values.shape[1]))
            yield (values,), None if self.labels is None else self.labels[rows]

    @property
    def has_targets(self) -> bool:
        """See `Batches`."""
        return self.labelled or self.targets is not None

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        targets = self.labels if self.targets is None else self.targets
        order = sample_order(self.samples, generator=torch.Generator().manual_seed(seed), shuffle=shuffle)
        batches = self.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle)
        for rows, (inputs, _) in zip(order.split(batch_size), batches, strict=True):
            yield inputs, None if targets is None else targets[rows]

    def known_labels(self) -> Tensor | None:
        """See `Batches`."""
        return self.labels

    def origin(self, index: int) -> str:
        """See `Batches`."""
        return f"'{self.files[index]}'" if self.files else f"sample {index} of {self.name}"


def read_npz(path: Path, keys: Iterable[str] | None = None) -> tuple[tuple[str, ...], dict[str, NDArray[Any]]]:
    """The names of all arrays of an .npz file, and those of `keys` that it has; all of them where None.

    Raises:
        InputError: The file is missing, damaged, a bomb, or one of those arrays is pickled.
    """
    try:
        # np.load leaves the file open where it fails; this one is ours to close.
        with open_archive(path, what="data"), path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            names = tuple(held.files)
            return names, {key: _member(held, key, path) for key in (names if keys is None else keys) if key in names}
    except (AttributeError, TypeError) as error:  # np.load took it for something else than an archive
        raise InputError(f"'{path}' is no .npz archive: {first_line(error)}", hint="np.savez(f, x=x)") from error


def _member(held: Any, key: str, path: Path) -> NDArray[Any]:
    """One array of an archive. numpy's reader raises whatever its parsers do, tokenize.TokenError among them."""
    try:
        with foreign(f"'{key}' of '{path}' is truncated or corrupt:", hint="write it again"):
            array = held[key]
    except InputError as error:
        if "allow_pickle" not in error.message:
            raise
        raise InputError(
            f"'{key}' of '{path}' cannot be read without running code: it holds Python objects",
            hint="save arrays of numbers with np.savez; object arrays are pickles",
        ) from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"'{key}' of '{path}' is no array", hint="np.savez(f, x=x, y=y)")
    return array


def from_arrays(arrays: dict[str, NDArray[Any]], settings: DataSettings, *, name: str, key: str = "x") -> Data:
    """Make data of arrays in memory.

    Args:
        arrays: "x" and optionally "y", "x_val", "y_val". x: floats [N, ...] used as they are (float32); uint8
            images [N, H, W, C], [N, C, H, W] or [N, H, W], normalised; other integers used as they are
            (int64). y: class indices [N] or [N, 1]; other numbers [N, ...] only judge answers.
        settings: Normalisation, limit and split.
        name: Of the data set.
        key: What stands in the place of "x", as in "x_val".

    Raises:
        InputError: No samples, lengths that differ, NaN or Inf in x, or x_val without y_val.
    """
    held_out_key = f"{key}_val"
    if "y_val" in arrays and held_out_key not in arrays:
        raise InputError(f"'{name}' has 'y_val' but no '{held_out_key}'", hint="give both or neither")
    if held_out_key in arrays and ("y" in arrays) != ("y_val" in arrays):
        lacking = "y_val" if "y" in arrays else "y"
        raise InputError(
            f"'{name}' has labels for one split only: '{held_out_key}' is there, '{lacking}' is not", hint="add it"
        )
    remarks: list[str] = []
    x, y = _checked(arrays, (key, "y"), name)
    if held_out_key in arrays:
        x_val, y_val = _checked(arrays, (held_out_key, "y_val"), name)
    else:
        train, held_out, remark = split(len(x), settings, name)
        remarks.append(remark)
        x_val, y_val = x[held_out], None if y is None else y[held_out]
        x, y = x[train], None if y is None else y[train]
    for kept, total in {(len(limited(len(part), settings)), len(part)) for part in (x, x_val)}:
        if kept < total:
            remarks.append(f"limited to {kept} of {total} samples (seed {settings.seed})")
    return Data(
        train=_limited_batches(x, y, "train", settings),
        val=_limited_batches(x_val, y_val, "val", settings),
        name=name,
        remarks=tuple(dict.fromkeys(remarks)),
        images=replace(settings, channels=x.shape[1]) if x.dtype == torch.uint8 else None,
    )


def class_indices(labels: Tensor) -> Tensor | None:
    """Return labels as [N] int64 if they are class indices (integers, one per sample), else None."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.to(torch.int64)


def _limited_batches(x: Tensor, y: Tensor | None, name: str, settings: DataSettings) -> ArrayBatches:
    kept = limited(len(x), settings)
    if len(kept) < len(x):
        x, y = x[kept], None if y is None else y[kept]
    indices = None if y is None else class_indices(y)
    return ArrayBatches(x, indices, name, settings, targets=y if indices is None else None)


def _checked(arrays: dict[str, NDArray[Any]], keys: tuple[str, str], name: str) -> tuple[Tensor, Tensor | None]:
    """One split's inputs and labels as tensors."""
    x_key, y_key = keys
    x = arrays[x_key]
    if x.ndim == 0 or len(x) == 0:
        raise InputError(
            f"'{x_key}' of '{name}' holds no samples (shape {list(x.shape)})", hint="samples lie on axis 0"
        )
    inputs = _inputs(x, x_key, name)
    if y_key not in arrays:
        return inputs, None
    y = arrays[y_key]
    if y.ndim == 0 or len(y) != len(x):
        raise InputError(
            f"'{name}' has {len(x)} samples in '{x_key}' but {len(y) if y.ndim else 1} labels in '{y_key}'",
            hint="give one label per sample",
        )
    if y.dtype.kind not in "biuf":
        raise InputError(f"'{y_key}' of '{name}' is {y.dtype}, not numbers", hint="give class indices 0, 1, 2, ...")
    labels = torch.from_numpy(_native(y))
    if y.dtype.kind == "f" and not bool(torch.isfinite(labels).all()):
        raise InputError(f"'{y_key}' of '{name}' holds NaN or Inf", hint="remove or replace those samples")
    return inputs, labels


def _inputs(x: NDArray[Any], key: str, name: str) -> Tensor:
    if x.dtype.kind not in "biuf":
        raise InputError(f"'{key}' of '{name}' is {x.dtype}, not numbers", hint="give floats, or uint8 images")
    if x.dtype == np.uint8 and x.ndim in (3, 4):
        return torch.from_numpy(_channels_first(x))
    if x.dtype.kind == "f":
        values = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
        bad = ~torch.isfinite(values.flatten(1) if values.ndim > 1 else values[:, None]).all(dim=1)
        if bad.any():
            raise InputError(
                f"'{key}' of '{name}' holds NaN or Inf in {int(bad.sum())} of {len(x)} samples "
                f"(first: {int(bad.nonzero()[0])})",
                hint="remove or replace those samples",
            )
        return values
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int64))


def _channels_first(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, H, W], [N, H, W, C] or [N, C, H, W] -> [N, C, H, W]; C is 1, 3 or 4."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[1] not in (1, 3) and images.shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(images)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """Contiguous and in a type torch knows: unsigned integers widened, native byte order."""
    wide = {"u": np.int64, "i": np.int64, "f": np.float64, "b": np.int64}[array.dtype.kind]
    return np.ascontiguousarray(array, dtype=wide)
