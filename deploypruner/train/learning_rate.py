"""The learning rate that the settings prescribe at every step."""

from __future__ import annotations

import math

from deploypruner.recipe.finetune import FinetuneSettings

_STEP = 0.4, 0.1  # where the rate of "step" falls, and to what share


def learning_rate(settings: FinetuneSettings, step: int, steps: int) -> float:
    """Rate of step `step` (from 0) of `steps`: linear rise to `peak_lr`, then down as the schedule says."""
    warm = round(settings.warmup * steps)
    if step < warm:
        return settings.peak_lr * (step + 1) / warm
    if settings.schedule == "step":
        at, share = _STEP
        return settings.peak_lr * (1.0 if step < at * steps else share)
    return settings.peak_lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))
