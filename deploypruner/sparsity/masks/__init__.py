"""Soft masks: which entries of a vector stay, as numbers between 0 and 1 with a gradient. Tensors only, no layers."""

from __future__ import annotations

from deploypruner.sparsity.masks.hard import top_mask
from deploypruner.sparsity.masks.pdp import pdp_mask, pdp_temperature, root_mean_square
from deploypruner.sparsity.masks.ramp import cubic_ramp, linear_ramp, ramped_keep
from deploypruner.sparsity.masks.transport import TransportMask, transport_beta

__all__ = [
    "TransportMask",
    "cubic_ramp",
    "linear_ramp",
    "pdp_mask",
    "pdp_temperature",
    "ramped_keep",
    "root_mean_square",
    "top_mask",
    "transport_beta",
]
