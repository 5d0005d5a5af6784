"""Image folders: `train/CLASS/*` with `val` or `test`, `CLASS/*`, or images without classes."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.arrays import ArrayBatches
from deploypruner.sources.batches import Batch, Batches, Data, limited, sample_order
from deploypruner.sources.folder_layout import Finder, Listing, find_splits
from deploypruner.sources.pixels import SMALL, augmented, decode, flipped, image_size, normalise, random_boxes

_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class FileBatches(Batches):
    """Images decoded when they are needed, by a few threads, one batch ahead.

    Args:
        listing: Files and labels.
        settings: With `size` set.
    """

    listing: Listing
    settings: DataSettings

    @property
    def labelled(self) -> bool:
        """See `Batches`."""
        return self.listing.labels is not None

    @property
    def samples(self) -> int:
        """See `Batches`."""
        return len(self.listing.files)

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """See `Batches`."""
        assert self.settings.size is not None, "batches of images need a size"
        return ((self.settings.channels, *self.settings.size),)

    def epoch(
        self, *, batch_size: int, seed: int = 0, shuffle: bool = False, augment: bool = False
    ) -> Iterator[Batch]:
        """See `Batches`; beyond 64 pixels the random part is cut from the whole image, before the resize."""
        generator = torch.Generator().manual_seed(seed)
        augment = augment and self.settings.augment
        order = sample_order(self.samples, generator=generator, shuffle=shuffle)
        waiting: deque[tuple[Tensor, list[Future[NDArray[np.uint8]]]]] = deque()
        with ThreadPoolExecutor(_threads()) as pool:
            for rows in order.split(batch_size):
                waiting.append((rows, self._submit(pool, rows, generator if augment else None)))
                if len(waiting) > 1:
                    yield self._finished(*waiting.popleft(), generator if augment else None)
            while waiting:
                yield self._finished(*waiting.popleft(), generator if augment else None)

    def known_labels(self) -> Tensor | None:
        """See `Batches`."""
        return None if self.listing.labels is None else torch.tensor(self.listing.labels)

    def origin(self, index: int) -> str:
        """See `Batches`."""
        return f"'{self.listing.files[index]}'"

    def _submit(
        self, pool: ThreadPoolExecutor, rows: Tensor, generator: torch.Generator | None
    ) -> list[Future[NDArray[np.uint8]]]:
        files = [self.listing.files[i] for i in rows.tolist()]
        if generator is None or max(self.input_shapes[0]) <= SMALL:
            return [pool.submit(decode, file, self.settings) for file in files]
        boxes: list[Any] = random_boxes(len(files), 1.0, generator).tolist()
        return [pool.submit(decode, f, self.settings, box=tuple(b)) for f, b in zip(files, boxes, strict=True)]

    def _finished(
        self, rows: Tensor, images: list[Future[NDArray[np.uint8]]], generator: torch.Generator | None
    ) -> Batch:
        values = torch.from_numpy(np.stack([image.result() for image in images]))
        if generator is not None:
            small = max(self.input_shapes[0]) <= SMALL
            values = augmented(values, generator) if small else flipped(values, generator)
        labels = self.listing.labels
        target = None if labels is None else torch.tensor([labels[i] for i in rows.tolist()])
        return (normalise(values, *self.settings.normalisation(self.settings.channels)),), target


def load_image_folder(root: Path, settings: DataSettings) -> Data:
    """Read an image folder.

    Images are kept decoded (uint8) where a split takes less than 1 GiB, so that an unreadable one is found
    now; larger splits are decoded batch by batch.

    Args:
        root: Holds splits, each of class folders; or class folders, or images without classes, of which
            `settings.val_fraction` is set aside; see `folder_layout`.
        settings: `size` None takes the size of the first image, which all must then have.

    Raises:
        InputError: No images, an empty class folder, splits with different classes, an unreadable image.
    """
    train, val, remarks = find_splits(root, settings)
    listings = []
    for listing in (train, val):
        kept = limited(len(listing.files), settings)
        if len(kept) < len(listing.files):
            remarks.append(f"limited to {len(kept)} of {len(listing.files)} images (seed {settings.seed})")
        listings.append(listing.subset(kept))
    if settings.size is None:
        settings = replace(settings, size=_common_size([file for part in listings for file in part.files]))
    settings.normalisation(settings.channels)
    return Data(
        train=_batches(listings[0], settings, "train"),
        val=_batches(listings[1], settings, "val"),
        name=root.resolve().name,
        classes=train.classes or val.classes,
        remarks=tuple(remarks),
        images=settings,
    )


def first_images(root: Path, count: int) -> list[Path]:
    """Return up to `count` images below `root`, the first in path order."""
    return Finder().images(root)[:count]


def _common_size(files: list[Path]) -> tuple[int, int]:
    size = image_size(files[0])
    for file in files[1:]:
        other = image_size(file)
        if other != size:
            raise InputError(
                f"images differ in size: '{files[0]}' is {size[1]}x{size[0]}, '{file}' is {other[1]}x{other[0]}",
                hint="give the size of the model's input with --input-shape 1,3,224,224",
            )
    return size


def _batches(listing: Listing, settings: DataSettings, name: str) -> Batches:
    assert settings.size is not None, "batches of images need a size"
    shape = (len(listing.files), settings.channels, *settings.size)
    if np.prod(shape) >= _MEMORY_BYTES:
        return FileBatches(listing, settings)
    images = np.empty(shape, dtype=np.uint8)
    # Tiny images spend their time in Python, where threads only wait for each other.
    threads = 1 if max(settings.size) <= SMALL else _threads()
    with ThreadPoolExecutor(threads) as pool:
        decoded = (map if threads == 1 else pool.map)(lambda file: decode(file, settings), listing.files)
        for row, image in enumerate(decoded):
            images[row] = image
    labels = None if listing.labels is None else torch.tensor(listing.labels)
    return ArrayBatches(torch.from_numpy(images), labels, name, settings, listing.files)


def _threads() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)
