"""Inputs on which two forms of a model are compared: the example's kind of values, no two samples alike."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from deploypruner.graph.inputs import Inputs, map_tensors, resized

Spread = Literal["added", "scaled"]


def probe(example: Inputs, samples: int | None, seed: int, spread: Spread = "added") -> Inputs:
    """Inputs like the example with other values.

    Floating-point tensors get seeded noise of their own standard deviation, or are scaled by factors between one half
    and three halves, which keeps signs and zeros. Integers keep their values in another order within each sample, so
    that every id stays valid. Flags stay.

    Args:
        example: Inputs the model runs on.
        samples: Batch size, None for the example's.
        seed: Inputs of one seed are always the same.
        spread: How floating-point values are varied.
    """
    generator = torch.Generator().manual_seed(seed)

    def varied(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.is_floating_point():
            return _noisy(tensor, generator, spread)
        return tensor if tensor.dtype == torch.bool or tensor.is_complex() else _shuffled(tensor, generator)

    return map_tensors(varied, example if samples is None else resized(example, samples))


def _noisy(tensor: Tensor, generator: torch.Generator, spread: Spread) -> Tensor:
    values = tensor.double().cpu()
    if not values.isfinite().all():
        return tensor  # an additive mask: its infinities are its meaning
    if spread == "scaled":
        return (values * (0.5 + torch.rand(values.shape, generator=generator, dtype=values.dtype))).to(tensor.device)
    size = float(values.std(correction=0)) if values.numel() else 0.0
    noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
    return (values + (size or 1.0) * noise).to(tensor.device)


def _shuffled(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Each sample's values in an order of its own."""
    if tensor.ndim < 2:
        return tensor
    rows = tensor.cpu().reshape(tensor.shape[0], -1)
    order = torch.rand(rows.shape, generator=generator).argsort(dim=1)
    return rows.gather(1, order).reshape(tensor.shape).to(tensor.device)
