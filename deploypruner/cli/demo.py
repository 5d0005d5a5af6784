"""What `deploypruner demo` compiles: a small residual network and real images that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.api import run_recipe
from deploypruner.build.state import Given
from deploypruner.errors import InputError
from deploypruner.progress import Console, Progress
from deploypruner.recipe import MeasureRecipe, PruneRecipe, Recipe, RecoverRecipe
from deploypruner.recipe.data import DataSettings
from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.sources.arrays import from_arrays
from deploypruner.sources.batches import Data
from deploypruner.train.finetune import finetune

Digits: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
Widths: TypeAlias = tuple[int, int, int]

IMAGE_SIZE = 16  # pixels
CLASSES = 10
WIDTHS = (48, 96, 192)  # 27 M MACs: training takes seconds, one inference most of a millisecond
_VALIDATION = 360  # of 1797


def digits_data() -> Digits:
    """Handwritten digits: (x_train [1437, 1, 16, 16], y_train [1437], x_val [360, 1, 16, 16], y_val [360]).

    The 1797 grey images of 8 x 8 pixels that scikit-learn ships (UCI "Optical Recognition of Handwritten
    Digits"), each pixel doubled in both directions so that three stages of a network have something to
    halve; values in [-1, 1]. The split is always the same: a fixed permutation, the first 360 for validation.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise InputError(
            "the demo's images come with scikit-learn, which is not installed",
            hint="pip install deploypruner[demo]",
        ) from error
    images, labels = load_digits(return_X_y=True)
    x = images.reshape(-1, 1, 8, 8).repeat(2, axis=2).repeat(2, axis=3)
    x = (x / 8 - 1).astype(np.float32)  # the pixels are counts from 0 to 16
    y = labels.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(y))
    val, train = order[:_VALIDATION], order[_VALIDATION:]
    return x[train], y[train], x[val], y[val]


def demo_data() -> Data:
    """The digits as training and validation split; never flipped or shifted.

    Raises:
        InputError: scikit-learn is not installed.
    """
    x, y, x_val, y_val = digits_data()
    arrays: dict[str, NDArray[Any]] = {"x": x, "y": y, "x_val": x_val, "y_val": y_val}
    return from_arrays(arrays, DataSettings(channels=1, augment=False), name="digits")


class DemoBlock(nn.Module):
    """Two 3 x 3 convolutions around a shortcut; a strided 1 x 1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same = before == after and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, before, H, W] -> [N, after, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class DemoNet(nn.Module):
    """A residual network of three stages for digits [N, 1, 16, 16] -> scores [N, 10].

    Args:
        widths: Channels of the three stages.
    """

    def __init__(self, widths: Widths = WIDTHS) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Conv2d(1, first, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(first)
        self.stage1 = DemoBlock(first, first, 1)
        self.stage2 = DemoBlock(first, second, 2)
        self.stage3 = DemoBlock(second, third, 2)
        self.head = nn.Linear(third, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 1, 16, 16] -> [N, 10]."""
        x = F.relu(self.bn(self.stem(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.head(x.mean(dim=(2, 3)))


def train_demo_model(
    progress: Progress | None = None,
    seed: int = 0,
    *,
    data: Data | None = None,
    epochs: int = 4,
    widths: Widths = WIDTHS,
) -> nn.Module:
    """A `DemoNet` trained from scratch to about 99 % on the validation digits, in evaluation mode.

    Four epochs take about 17 s on one core of a 2.5 GHz Xeon. torch's global random state stays as it was.

    Args:
        progress: Told about every step.
        seed: Decides the initial weights and the order of the samples.
        data: The digits where they are loaded already.
        epochs: Passes over the training images.
        widths: Channels of the three stages.

    Raises:
        InputError: scikit-learn is not installed.
    """
    data = data or demo_data()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DemoNet(widths)
    settings = FinetuneSettings(epochs=epochs, batch_size=64, lr=0.05, channels_last=True, seed=seed)
    finetune(model, None, data.train, settings, progress=progress, label="train")
    return model.eval()


def run_demo(out: Path, *, overwrite: bool = False, shown: Console, command: str) -> None:
    """Train the network, then compile it to half its multiply-adds as `deploypruner compile` would.

    Args:
        out: Build folder.
        overwrite: Whether a finished build in it may be replaced.
        shown: Told about every step.
        command: What the report says made the build.
    """
    data = demo_data()
    shown.step("training a small residual network on scikit-learn's handwritten digits")
    model = train_demo_model(shown, data=data)
    recipe = Recipe(
        prune=PruneRecipe(macs=0.5, criterion="taylor"),
        recover=RecoverRecipe(epochs=3, settings=FinetuneSettings(batch_size=64, channels_last=True)),
        measure=MeasureRecipe(seconds=15.0),
    )
    given = Given(model=model, example_inputs=(torch.zeros(2, 1, IMAGE_SIZE, IMAGE_SIZE),), data=data)
    run_recipe(
        recipe,
        out,
        given=given,
        command=command,
        overwrite=overwrite,
        progress=shown,
        say=shown.say,
        detail=shown.detail,
    )
