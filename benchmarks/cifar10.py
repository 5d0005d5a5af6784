"""CIFAR-10 as JPEG images, decoded once and held in memory; flips, crops and batches are DeployPruner's own."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.arrays import from_arrays
from deploypruner.sources.batches import Batches, Data

SHARED = Path(os.environ.get("BENCHMARK_DATA", Path(__file__).parent / "data"))
WORK = Path(__file__).parent / "work"
MEAN = (0.485, 0.456, 0.406)  # the published weights expect these
STD = (0.229, 0.224, 0.225)


def cifar10(train_limit: int | None = None, test_limit: int | None = None) -> Data:
    """50,000 training and 10,000 test images [3, 32, 32]; the test images are the validation split.

    Args:
        train_limit: Use so many training images, chosen once at random.
        test_limit: The same of the test images.

    Raises:
        InputError: The archive of images is not there.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, limit, end in (("train", train_limit, ""), ("test", test_limit, "_val")):
        x, y = split(name)
        chosen = np.sort(np.random.default_rng(0).permutation(len(y))[:limit])
        arrays |= {f"x{end}": x[chosen], f"y{end}": y[chosen]}
    return from_arrays(arrays, DataSettings(mean=MEAN, std=STD), name="cifar10-jpeg")


def held_out(count: int) -> Batches:
    """Training images [3, 32, 32] that `cifar10(limit)` does not use, for limits up to 50,000 - count."""
    x, y = split("train")
    chosen = np.sort(np.random.default_rng(0).permutation(len(y))[-count:])
    arrays: dict[str, NDArray[Any]] = {"x": x[chosen], "y": y[chosen], "x_val": x[chosen], "y_val": y[chosen]}
    return from_arrays(arrays, DataSettings(mean=MEAN, std=STD), name="cifar10-jpeg").val


def split(name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images [N, 3, 32, 32] and labels [N], classes in alphabetical order."""
    cache = WORK / f"cifar10-{name}.npz"
    if not cache.exists():
        folder = unpacked() / name
        files = sorted(folder.glob("*/*.jpg"))
        classes = sorted({file.parent.name for file in files})
        images = np.stack([np.asarray(Image.open(file).convert("RGB")).transpose(2, 0, 1) for file in files])
        labels = np.array([classes.index(file.parent.name) for file in files], dtype=np.int64)
        temporary = cache.with_suffix(".tmp")
        with temporary.open("wb") as file:
            np.savez(file, images=images, labels=labels)
        temporary.replace(cache)
    with np.load(cache) as arrays:
        return arrays["images"], arrays["labels"]


def unpacked() -> Path:
    """Folder with `train/CLASS/*.jpg` and `test/CLASS/*.jpg`."""
    folder, archive = WORK / "cifar10", SHARED / "cifar10-jpeg.tar.gz"
    complete = WORK / "cifar10.complete"
    if not complete.exists():
        if not archive.exists():
            raise InputError(f"{archive} does not exist", hint="put the JPEG images of CIFAR-10 there")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")
        complete.touch()
    return folder
