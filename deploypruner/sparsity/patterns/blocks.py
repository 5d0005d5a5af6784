"""Blocks of neighbouring inputs: 1x4 of one output each, 2x4 and 4x4 shared by two and four outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deploypruner.sparsity.patterns import Pattern, Units, as_weight, by_tap, patterns

_WIDE = 4


@patterns.register("1x4")
@dataclass(frozen=True)
class Blocks(Pattern):
    """Blocks of 1 output x 4 neighbouring inputs, one VNNI or DOT product each; a last narrower block is padded.

    Source: the block shape is that of QNNPACK's sparse kernels (1x4); a block's saliency is the sum of its weights'.

    Attributes:
        outputs: Neighbouring outputs, from a multiple of that number on, that keep the same blocks.
    """

    outputs: ClassVar[int] = 1

    def units(self, saliency: Tensor) -> Units:
        """Every block is a unit, in one row."""
        outputs, taps, inputs = by_tap(saliency).shape
        rows, blocks = -(-outputs // self.outputs), -(-inputs // _WIDE)
        line = torch.arange(rows * taps, device=saliency.device).view(rows, taps, 1) * blocks
        index = line + torch.arange(inputs, device=saliency.device) // _WIDE
        index = index.repeat_interleave(self.outputs, 0)[:outputs]
        return Units(as_weight(index, saliency.shape), 1, rows * taps * blocks)

    def ragged(self, inputs: int) -> str:
        """The last block is narrower, and takes the room of a whole one."""
        rest = inputs % _WIDE
        return f"{inputs} inputs are no multiple of {_WIDE}: the last block of each row holds {rest}" if rest else ""


@patterns.register("2x4")
@dataclass(frozen=True)
class PairedBlocks(Blocks):
    """Blocks of 2 neighbouring outputs x 4 neighbouring inputs: what is loaded is multiplied twice.

    Nearly as fast as 4x4, and keeps more. A last output alone takes the time of two.

    Source: ours (the kernels' paired rows).
    """

    outputs: ClassVar[int] = 2


@patterns.register("4x4")
@dataclass(frozen=True)
class SharedBlocks(Blocks):
    """Blocks of 4 neighbouring outputs x 4 neighbouring inputs: what is loaded is multiplied four times.

    The fastest pattern of the kernels, and the one that keeps least at equal sparsity. The last group of outputs may
    be narrower, and takes the time of a whole one.

    Source: ours (the kernels' shared rows).
    """

    outputs: ClassVar[int] = 4
