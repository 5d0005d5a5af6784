"""1x4: blocks of one output and four neighbouring inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deploypruner.sparsity.patterns import Pattern, Units, as_weight, by_tap, patterns

_WIDE = 4


@patterns.register("1x4")
@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of 1 output x 4 neighbouring inputs, one VNNI or DOT product each; a last narrower block is padded.

    Source: the block shape is that of QNNPACK's sparse kernels (1x4); a block's saliency is the sum of its weights'.
    """

    def units(self, saliency: Tensor) -> Units:
        """Every block is a unit, in one row."""
        outputs, taps, inputs = by_tap(saliency).shape
        blocks = -(-inputs // _WIDE)
        line = torch.arange(outputs * taps, device=saliency.device).view(outputs, taps, 1) * blocks
        index = line + torch.arange(inputs, device=saliency.device) // _WIDE
        return Units(as_weight(index, saliency.shape), 1, outputs * taps * blocks)

    def ragged(self, inputs: int) -> str:
        """The last block is narrower, and takes the room of a whole one."""
        rest = inputs % _WIDE
        return f"{inputs} inputs are no multiple of {_WIDE}: the last block of each row holds {rest}" if rest else ""
