"""What recovery asks of a data set; `deploypruner.sources` provides it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from torch import Tensor

from deploypruner.losses import Labels

Batch = tuple[tuple[Tensor, ...], Labels]


class TrainingBatches(Protocol):
    """A data set that can be read any number of times, in batches."""

    @property
    def labelled(self) -> bool:
        """True where every batch carries labels to train by."""

    @property
    def samples(self) -> int | None:
        """Number of samples in one epoch, None when it is not known beforehand."""

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        """Yield (inputs, labels or None); the same arguments give the same batches."""


@dataclass(frozen=True)
class FirstBatches:
    """The first few batches of every epoch of a data set.

    Args:
        whole: The data set.
        count: How many batches.
    """

    whole: TrainingBatches
    count: int

    @property
    def labelled(self) -> bool:
        """See `Batches.labelled`."""
        return self.whole.labelled

    @property
    def samples(self) -> int | None:
        """Unknown: the last batch of a data set may be smaller."""
        return None

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        """See `Batches.epoch`."""
        return islice(
            self.whole.epoch(batch_size=batch_size, seed=seed, shuffle=shuffle, augment=augment), self.count
        )
