"""How far two tensors are apart: the one answer for every proof and comparison of outputs."""

from __future__ import annotations

from math import inf, nan

import torch
from torch import Tensor


def largest_gap(got: Tensor, wanted: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, in float64; real and imaginary parts apart.

    The same infinity, or NaN on both sides, is no difference; NaN or infinity on one side is an infinite one.
    """
    a, b = _numbers(got), _numbers(wanted).to(got.device)
    gap = (a - b).abs().masked_fill_((a == b) | (a.isnan() & b.isnan()), 0.0)
    return float(gap.nan_to_num_(nan=inf, posinf=inf).max()) if gap.numel() else 0.0


def proving_gap(got: Tensor, wanted: Tensor) -> float:
    """`largest_gap`, NaN where what is wanted is not finite: that proves nothing, and is within no bound."""
    return largest_gap(got, wanted) if bool(wanted.isfinite().all()) else nan


def magnitude(tensor: Tensor) -> float:
    """Largest finite absolute value; 0 of a tensor that has none."""
    numbers = _numbers(tensor).abs()
    return float(numbers.masked_fill_(~numbers.isfinite(), 0.0).max()) if numbers.numel() else 0.0


def _numbers(tensor: Tensor) -> Tensor:
    """Float64: complex numbers as pairs, integers and flags converted."""
    tensor = tensor.detach()
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()
