"""Splits as a model can use them: without labels it has no output for, in batches of the one size it takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.sources.batches import Batch, Batches, Judgeable


@dataclass(frozen=True, eq=False)
class Adapted(Batches):
    """A split that another one is made of; what an adaptation does not say is as in that one.

    Args:
        inner: The split.
    """

    inner: Batches

    @property
    def labelled(self) -> bool:
        """See `Batches`."""
        return self.inner.labelled

    @property
    def samples(self) -> int | None:
        """See `Batches`."""
        return self.inner.samples

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """See `Batches`."""
        return self.inner.input_shapes

    @property
    def has_targets(self) -> bool:
        """See `Batches`."""
        return self.inner.has_targets

    def known_labels(self) -> Tensor | None:
        """See `Batches`."""
        return self.inner.known_labels()

    def origin(self, index: int) -> str:
        """See `Batches`."""
        return self.inner.origin(index)


@dataclass(frozen=True, eq=False)
class Unlabelled(Adapted):
    """The inputs of a split alone.

    Args:
        inner: The split.
    """

    @property
    def labelled(self) -> bool:
        """Never."""
        return False

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        for inputs, _ in self.inner.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment):
            yield inputs, None

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """With those of the split: they judge, and nothing is trained or scored on them."""
        yield from self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle)

    def known_labels(self) -> Tensor | None:
        """None."""
        return None


@dataclass(frozen=True, eq=False)
class Targeted(Adapted):
    """A split that trains by labels of other kinds than one class per sample: numbers, masks, several per sample.

    Images are not augmented here: a mask or a place would have to be moved with them.

    Args:
        inner: The split, with targets that are tensors, or tuples of tensors.
        used: Which of them are trained by; they come as a tuple in this order.
    """

    used: tuple[int, ...]

    @property
    def labelled(self) -> bool:
        """Always."""
        return True

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Judgeable]:
        """See `Batches`; with the targets for labels."""
        for inputs, target in self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle):
            parts = target if isinstance(target, tuple) else (target,)
            if len(parts) <= max(self.used) or not all(isinstance(parts[number], Tensor) for number in self.used):
                raise InputError(
                    "a batch of the data has no labels, or others than the first batch has",
                    hint="label all batches alike, or none",
                )
            yield inputs, tuple(parts[number] for number in self.used)

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """Those of the split, all of them."""
        yield from self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle)

    def known_labels(self) -> Tensor | None:
        """None: no class indices."""
        return None


@dataclass(frozen=True, eq=False)
class Relabelled(Adapted):
    """A split with other class numbers.

    Args:
        inner: The split, labelled.
        numbers: [k] int64; class i of the split becomes numbers[i].
    """

    numbers: Tensor

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        for inputs, labels in self.inner.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment):
            yield inputs, None if labels is None else self.numbers[labels]

    def known_labels(self) -> Tensor | None:
        """See `Batches`."""
        labels = self.inner.known_labels()
        return None if labels is None else self.numbers[labels]


@dataclass(frozen=True, eq=False)
class ChannelsLast(Adapted):
    """A split of images [B, C, H, W] as [B, H, W, C].

    Args:
        inner: The split, with one input.
    """

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """See `Batches`."""
        return tuple((height, width, channels) for channels, height, width in self.inner.input_shapes or ()) or None

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        for (images,), labels in self.inner.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment):
            yield (images.permute(0, 2, 3, 1).contiguous(),), labels

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        for (images,), labels in self.inner.with_targets(batch_size=batch_size, seed=seed, shuffle=shuffle):
            yield (images.permute(0, 2, 3, 1).contiguous(),), labels


@dataclass(frozen=True, eq=False)
class WholeBatches(Adapted):
    """A split in batches of one size, whatever size is asked for; samples that do not fill a batch are left out.

    Args:
        inner: The split.
        size: Samples in every batch.

    Raises:
        InputError: The split is known to have fewer samples than one batch.
    """

    size: int

    def __post_init__(self) -> None:
        if self.samples == 0:
            raise InputError(
                f"the model takes batches of exactly {self.size} samples, and a split of the data has only "
                f"{self.inner.samples}",
                hint="add samples, or export the model with a dynamic batch",
            )

    @property
    def samples(self) -> int | None:
        """See `Batches`."""
        count = self.inner.samples
        return None if count is None else count - count % self.size

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`."""
        yield from _whole(
            self.inner.epoch(batch_size=self.size, seed=seed, shuffle=shuffle, augment=augment), self.size
        )

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """See `Batches`."""
        yield from _whole(self.inner.with_targets(batch_size=self.size, seed=seed, shuffle=shuffle), self.size)


def _whole(batches: Iterator[Judgeable], size: int) -> Iterator[Judgeable]:
    """The same samples in batches of `size`; those that do not fill one are left out."""
    waiting: list[Judgeable] = []
    for batch in batches:
        waiting.append(batch)
        while sum(len(inputs[0]) for inputs, _ in waiting) >= size:
            joined = _joined(waiting)
            yield _part(joined, slice(size))
            rest = _part(joined, slice(size, None))
            waiting = [rest] if len(rest[0][0]) else []


def _joined(batches: list[Judgeable]) -> Judgeable:
    inputs = tuple(torch.cat(parts) for parts in zip(*(inputs for inputs, _ in batches), strict=True))
    return inputs, _joined_labels([target for _, target in batches if target is not None])


def _joined_labels(labels: list[Any]) -> Any:
    if not labels:
        return None
    if isinstance(labels[0], Tensor):
        return torch.cat(labels)
    if isinstance(labels[0], tuple):
        return tuple(_joined_labels(list(parts)) for parts in zip(*labels, strict=True))
    return [entry for part in labels for entry in part]


def _part(batch: Judgeable, rows: slice) -> Judgeable:
    inputs, labels = batch
    if isinstance(labels, tuple):
        return tuple(x[rows] for x in inputs), tuple(part[rows] for part in labels)
    return tuple(x[rows] for x in inputs), None if labels is None else labels[rows]
