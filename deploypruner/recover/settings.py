"""The fine-tuning recipe, and the learning rate it prescribes at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploypruner.errors import RecipeError


@dataclass(frozen=True)
class FinetuneSettings:
    """How the pruned model is trained: SGD with Nesterov momentum, linear warm-up, then half a cosine to zero.

    Args:
        epochs: Passes over the data, >= 1.
        batch_size: Samples per step, >= 1.
        lr: Highest learning rate, > 0.
        momentum: Nesterov momentum in (0, 1).
        weight_decay: L2 penalty on parameters of two axes or more; norms and biases have none. >= 0.
        warmup: Fraction of all steps over which the rate rises linearly, in [0, 1).
        label_smoothing: In [0, 1).
        distill: Weight of the dense model's outputs against the labels, in [0, 1]; 1 where there are none.
        temperature: Of the distillation, > 0.
        clip_norm: Largest norm of the whole gradient, > 0; `inf` for no clipping.
        augment: Whether the data set may flip and shift its training samples.
        channels_last: Feed 4-D inputs in NHWC memory order, which trains convolutional networks faster on a
            CPU; needs a model that never calls `view` on a feature map.
        seed: Decides the order of the samples, their augmentation and dropout.

    Raises:
        RecipeError: A value outside its range.
    """

    epochs: int = 5
    batch_size: int = 128
    lr: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: float = 0.05
    label_smoothing: float = 0.0
    distill: float = 0.5
    temperature: float = 4.0
    clip_norm: float = 5.0
    augment: bool = True
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, ok, allowed in (
            ("epochs", self.epochs >= 1, ">= 1"),
            ("batch_size", self.batch_size >= 1, ">= 1"),
            ("lr", self.lr > 0, "> 0"),
            ("momentum", 0 < self.momentum < 1, "between 0 and 1"),
            ("weight_decay", self.weight_decay >= 0, ">= 0"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)"),
            ("distill", 0 <= self.distill <= 1, "in [0, 1]"),
            ("temperature", self.temperature > 0, "> 0"),
            ("clip_norm", self.clip_norm > 0, "> 0"),
        ):
            if not ok:
                value = getattr(self, name)
                raise RecipeError(f"{name} must be {allowed}, got {value}", hint=f"set {name} to a value {allowed}")


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear rise to `lr`, then half a cosine down towards zero."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.lr * (step + 1) / warm
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
