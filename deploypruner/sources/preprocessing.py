"""How a source says its images must be prepared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["bilinear", "bicubic"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


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
