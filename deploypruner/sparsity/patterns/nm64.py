"""nm64: steps of four weights per output for sixteen outputs, gathered from a window of 64 inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from deploypruner.sparsity.patterns import Pattern, Units, as_weight, by_tap, patterns

_OUTPUTS, _WINDOW, _STEP = 16, 64, 4


@patterns.register("nm64")
@dataclass(frozen=True)
class Nm64(Pattern):
    """Per 16 outputs and window of 64 inputs a whole number of steps; each step is any 4 weights of every output.

    A step is one VPERMB gather and one VPDPBUSD of the int8 kernel. The number of steps is free in every (16 outputs,
    window); inside, step s takes the weights ranked 4s to 4s + 3 of each output, so a step is never worth more than
    the one before it and the best steps of the whole layer are the best mask.

    Source: ours (the kernel and the exact projection).
    """

    def units(self, saliency: Tensor) -> Units:
        """Every step is a unit, in one row; equal saliencies rank in the order of the inputs."""
        taps = by_tap(saliency)
        outputs, count, inputs = taps.shape
        padded = F.pad(taps, (0, -inputs % _WINDOW), value=-1.0).unflatten(2, (-1, _WINDOW))
        order = padded.argsort(dim=3, descending=True, stable=True)
        rank = order.argsort(dim=3).flatten(2)[:, :, :inputs]
        device = saliency.device
        window = torch.arange(inputs, device=device) // _WINDOW
        per_tap = inputs // _WINDOW * (_WINDOW // _STEP) + -(-(inputs % _WINDOW) // _STEP)
        tap = torch.arange(count, device=device).view(1, -1, 1)
        block = (torch.arange(outputs, device=device) // _OUTPUTS).view(-1, 1, 1)
        index = (block * count + tap) * per_tap + window * (_WINDOW // _STEP) + rank // _STEP
        return Units(as_weight(index, saliency.shape), 1, -(-outputs // _OUTPUTS) * count * per_tap)

    def ragged(self, inputs: int) -> str:
        """The last step of the last window is narrower, and takes the time of a whole one."""
        rest = inputs % _STEP
        return (
            f"{inputs} inputs are no multiple of {_STEP}: the last step of each window holds {rest}" if rest else ""
        )
