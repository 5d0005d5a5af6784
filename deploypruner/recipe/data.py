"""How samples are prepared."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from deploypruner.errors import InputError, RecipeError
from deploypruner.ranges import check_number, check_shape
from deploypruner.recipe.option import MODEL, documented, keyed, option

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MOST_SIDE = 1 << 15


@documented
@dataclass(frozen=True)
class DataSettings:
    """How samples are prepared.

    Raises:
        RecipeError: A value out of its range.
    """

    mean: tuple[float, ...] | None = option(
        None,
        "Mean per channel of pixels scaled to 0..1; ImageNet's for 3 channels, else 0.5.",
        flag="--mean",
        basic=True,
        metavar="R,G,B",
        group=MODEL,
    )
    std: tuple[float, ...] | None = option(
        None,
        "Standard deviation per channel of pixels scaled to 0..1; ImageNet's for 3 channels, else 0.5.",
        flag="--std",
        basic=True,
        metavar="R,G,B",
        group=MODEL,
    )
    size: tuple[int, int] | None = option(
        None,
        "(height, width) of the model's input; None = the size of the first image, which every image must then have.",
    )
    channels: int = option(
        3,
        "3 = RGB, 1 = grayscale.",
    )
    resize: int | None = option(
        None,
        "Pixels of the shorter side before the centre crop; None = 256/224 of the crop from 128 pixels on, and "
        "no crop below.",
    )
    interpolation: Interpolation = option(
        "bilinear",
        "Filter of that resize.",
    )
    augment: bool = option(
        True,
        "Permission to augment images at all; off for digits and text, which must not be flipped.",
    )
    val_fraction: float = option(
        0.1,
        "Part of the training samples set aside where the source has no validation split.",
    )
    limit: int | None = option(
        None,
        "Largest number of samples per split, taken from a shuffle with `seed`; None = all.",
    )
    seed: int = option(
        0,
        "Decides the split and the limit.",
    )

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise RecipeError(
                f"val_fraction must lie between 0 and 1, got {self.val_fraction}", hint="0.1", keys=("val_fraction",)
            )
        if self.limit is not None and self.limit < 1:
            raise RecipeError(
                f"limit must be at least 1, got {self.limit}", hint="leave it out for all samples", keys=("limit",)
            )
        if self.channels not in (1, 3):
            raise RecipeError(
                f"images have 1 or 3 channels, got {self.channels}", hint="give the data as .npz", keys=("channels",)
            )
        if self.size is not None:
            with keyed("size"):
                check_shape("size", self.size, hint="224,224 suits many models")
        check_number(
            "data.settings.resize", self.resize, least=1, most=_MOST_SIDE, hint="256 goes with images of 224"
        )
        for name, values, usual in (("mean", self.mean, IMAGENET_MEAN), ("std", self.std, IMAGENET_STD)):
            if not all(map(math.isfinite, values or ())):
                raise RecipeError(f"--{name} must be finite, got {_list(values)}", hint=f"{_list(usual)} is usual")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise RecipeError(f"--std must be > 0, got {_list(self.std)}", hint=f"{_list(IMAGENET_STD)} is usual")

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and std for images of `channels` channels.

        Raises:
            InputError: The given mean or std has another length.
        """
        default_mean, default_std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,) * channels,) * 2
        mean, std = self.mean or default_mean, self.std or default_std
        if len(mean) != channels or len(std) != channels:
            raise InputError(
                f"mean has {len(mean)} and std {len(std)} values, but images have {channels} channels",
                hint="give one value per channel",
            )
        return mean, std


def _list(values: tuple[float, ...] | None) -> str:
    return ",".join(f"{value:g}" for value in values or ())
