"""Arrays called as a model's inputs: an .npz for a network with several of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.adapted import Adapted
from deploypruner.sources.arrays import ArrayBatches, from_arrays, read_npz
from deploypruner.sources.batches import Batch, Batches, Data, Judgeable
from deploypruner.sources.loaders import LABEL_KEYS

_VAL = "_val"
_KEYS = ("x", "y", "x_val", "y_val")


@dataclass(frozen=True, eq=False)
class NamedBatches(Adapted):
    """Samples in memory of several inputs. None is augmented: others would have to be moved with it.

    Args:
        inner: The first input, and the labels.
        others: The other inputs, as many samples each.
        keys: Names of all, in this order.
    """

    inner: ArrayBatches
    others: tuple[ArrayBatches, ...]
    keys: tuple[str, ...]

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Batches`."""
        return tuple(shape for part in (self.inner, *self.others) for shape in part.input_shapes)

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        parts = (part.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle) for part in (self.inner, *self.others))
        for batches in zip(*parts, strict=True):
            yield tuple(x for inputs, _ in batches for x in inputs), batches[0][1]

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        targets = self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle)
        inputs = self.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle)
        for (together, _), (_, target) in zip(inputs, targets, strict=True):
            yield together, target


def load_npz(path: Path, settings: DataSettings, *, inputs: Collection[str] = ()) -> Data:
    """Read `x` and `y` (and `x_val`, `y_val`), or one array per input of the model, called as it is.

    Args:
        path: The file.
        settings: Normalisation, limit and split.
        inputs: Names of the model's inputs, where they are known.

    Raises:
        InputError: The file is missing, damaged, holds pickled objects, or its arrays do not fit.
    """
    names, arrays = read_npz(path, _KEYS if _plain(inputs) else None)
    if "x" in names and (_plain(inputs) or not set(inputs) <= set(names)):
        known = {key: arrays[key] for key in _KEYS if key in arrays}
        return from_arrays(known, settings, name=path.stem)
    if "x" not in names:
        _, arrays = read_npz(path)
    return from_named(arrays, settings, name=path.stem, inputs=inputs)


def _plain(inputs: Collection[str]) -> bool:
    """Is one input called x, or none known: what every .npz with an x is for?"""
    return set(inputs) <= {"x"}


def from_named(
    arrays: Mapping[str, NDArray[Any]], settings: DataSettings, *, name: str, inputs: Collection[str] = ()
) -> Data:
    """Make data of arrays in memory, each what one input takes.

    Args:
        arrays: Under the names of inputs, samples on axis 0, prepared as `from_arrays` has it; `y` (or `labels`,
            ...), and each with `_val` behind its name for a validation split.
        settings: Normalisation, limit and split.
        name: Of the data set.
        inputs: Names that are inputs whatever else they could mean.

    Raises:
        InputError: No input, numbers of samples that differ, a validation split of some of them alone, or what
            `from_arrays` refuses.
    """
    label = next((key for key in LABEL_KEYS if key in arrays and key not in inputs), "")
    held_out = {
        key for key in arrays if key.removesuffix(_VAL) in arrays and key.endswith(_VAL) and key not in inputs
    }
    keys = tuple(key for key in arrays if key != label and key not in held_out)
    if not keys:
        raise InputError(f"'{name}' has no input; it holds {', '.join(arrays)}", hint="np.savez(f, x=x, y=y)")
    for together in (keys, tuple(key + _VAL for key in keys if key + _VAL in held_out)):
        _check_alike({key: arrays[key] for key in together}, name)
    lacking = [key for key in (*keys, label) if key and key + _VAL not in held_out]
    if held_out and lacking:
        raise InputError(
            f"'{name}' has a validation split of some arrays alone: '{lacking[0]}{_VAL}' is not there",
            hint="give each input and the labels one, or none of them",
        )
    parts = []
    for place, key in enumerate(keys):
        own = {part: arrays[part] for part in (key, key + _VAL) if part in arrays}
        if label and not place:
            own |= {to: arrays[part] for part, to in ((label, "y"), (label + _VAL, "y_val")) if part in arrays}
        parts.append(from_arrays(own, settings, name=name, key=key))
    first, *others = parts
    if not others:
        return first
    return replace(
        first,
        train=_joined(keys, first.train, [part.train for part in others]),
        val=_joined(keys, first.val, [part.val for part in others]),
        images=None,
    )


def _joined(keys: tuple[str, ...], first: Batches, others: list[Batches]) -> NamedBatches:
    parts = [part for part in (first, *others) if isinstance(part, ArrayBatches)]
    return NamedBatches(parts[0], tuple(parts[1:]), keys)


def _check_alike(arrays: Mapping[str, NDArray[Any]], name: str) -> None:
    if len({array.shape[:1] for array in arrays.values()}) > 1:
        found = ", ".join(f"'{key}' {list(array.shape)}" for key, array in arrays.items())
        raise InputError(
            f"the arrays of '{name}' differ in their number of samples: {found}", hint="samples lie on axis 0 of each"
        )
