"""How a source says its images must be prepared."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.recipe.data import IMAGENET_MEAN, IMAGENET_STD, Interpolation


@dataclass(frozen=True)
class Preprocessing:
    """Image preparation a published model was evaluated with.

    Args:
        mean: Per channel, of pixels scaled to [0, 1].
        std: Per channel, same unit, > 0.
        resize: Pixels of the shorter side before the centre crop; None = derived from the crop.
        interpolation: Filter of that resize.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int | None = None
    interpolation: Interpolation = "bilinear"
