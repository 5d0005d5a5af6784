"""The records data travels in: a split that yields batches, and the two splits of a data set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.losses import Labels
from deploypruner.recipe.data import DataSettings

# (one tensor per model input, labels to train by or None)
Batch: TypeAlias = tuple[tuple[Tensor, ...], Labels]
# (one tensor per model input, labels of any kind or None)
Judgeable: TypeAlias = tuple[tuple[Tensor, ...], Any]


class Batches(ABC):
    """One split of a data set, iterated as often as needed."""

    @property
    @abstractmethod
    def labelled(self) -> bool:
        """Whether batches of an epoch carry labels to train by: class indices, unless it is `Targeted`."""

    @property
    @abstractmethod
    def samples(self) -> int | None:
        """Number of samples in one epoch, None where it is not known."""

    @property
    @abstractmethod
    def input_shapes(self) -> tuple[tuple[int, ...], ...] | None:
        """Shape of one sample of each model input, without the batch; None where it is not known."""

    @abstractmethod
    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """Yield every sample once; the last batch may be smaller.

        The same arguments give the same batches, so that a resumed run sees the data an uninterrupted one
        would. Pass a different seed for each epoch.

        Args:
            batch_size: Samples per batch, >= 1.
            seed: Decides the order and the augmentation.
            shuffle: Random order; otherwise the order of the source.
            augment: Random crops and flips, where the data are images and the settings allow it.

        Yields:
            Inputs, each [B, ...], and class indices [B] int64, labels of other kinds (`Targeted`), or None.
        """

    @property
    def has_targets(self) -> bool:
        """Whether there are labels of any kind to judge answers by: class indices, numbers, masks, ..."""
        return self.labelled

    def with_targets(self, *, batch_size: int, seed: int = 0, shuffle: bool = False) -> Iterator[Judgeable]:
        """Yield every sample once as `epoch` does, with its labels as the source has them, for judging answers.

        Yields:
            Inputs, each [B, ...], and labels: a tensor [B, ...], a tuple of them, or a list of B things that are no
            tensors; None without.
        """
        yield from self.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle)

    @abstractmethod
    def known_labels(self) -> Tensor | None:
        """Class indices [n] int64 in source order, as far as they can be had cheaply; None without labels."""

    @abstractmethod
    def origin(self, index: int) -> str:
        """Where sample `index` (source order) comes from, for an error: a file or "sample 17 of train"."""

    def __len__(self) -> int:
        if self.samples is None:
            raise TypeError("the number of samples is not known")
        return self.samples


@dataclass(frozen=True)
class Data:
    """A training and a validation split.

    Args:
        train: For recovery and calibration.
        val: For accuracy and agreement.
        name: Short title: folder, file stem or factory.
        classes: Class names by index, None where the source has no names.
        remarks: What was decided on the user's behalf, one sentence each.
        images: How pixels, 0 to 255, become the model's input; None where inputs are used as they are.
    """

    train: Batches
    val: Batches
    name: str
    classes: tuple[str, ...] | None = None
    remarks: tuple[str, ...] = ()
    images: DataSettings | None = None

    @property
    def labelled(self) -> bool:
        """Whether the validation split has labels that training and scoring can use."""
        return self.val.labelled


def sample_order(count: int, *, generator: torch.Generator, shuffle: bool) -> Tensor:
    """Return the indices of `count` samples, [count] int64, shuffled or in order."""
    return torch.randperm(count, generator=generator) if shuffle else torch.arange(count)


def limited(count: int, settings: DataSettings) -> Tensor:
    """Return which of `count` samples `settings.limit` leaves, [n] int64 ascending."""
    if settings.limit is None or settings.limit >= count:
        return torch.arange(count)
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.randperm(count, generator=generator)[: settings.limit].sort().values


def split(count: int, settings: DataSettings, name: str) -> tuple[Tensor, Tensor, str]:
    """Set `settings.val_fraction` of `count` samples aside.

    Returns:
        Train and validation indices, ascending int64, and the remark to show.

    Raises:
        InputError: Fewer than two samples.
    """
    if count < 2:
        raise InputError(
            f"'{name}' has {count} sample, too few for a training and a validation split", hint="give at least two"
        )
    held_out = min(count - 1, max(1, round(count * settings.val_fraction)))
    order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed))
    remark = (
        f"'{name}' has no validation split: {held_out} of its {count} samples are set aside (seed {settings.seed})"
    )
    return order[held_out:].sort().values, order[:held_out].sort().values, remark
