"""Sparse int8 weights as the kernels take them: a dense order with the zeros left out.

    weights   [O, I / groups, ky, kx] int8, flattened
    mask      one bit per weight, least significant bit of a byte first, ceil(weights / 8) bytes
    values    int8, one for each set bit, in the same order

(`kernels/include/deploypruner/kernels.h` is the contract.) Every pattern is that; a kernel unpacks it into what its
instructions like best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int8]


@dataclass(frozen=True)
class Packed:
    """Weights without their zeros.

    Args:
        mask: uint8 [ceil(weights / 8)].
        values: int8 [set bits].
    """

    mask: Bytes
    values: Ints


def pack(weights: NDArray[Any]) -> Packed:
    """Leave out the zeros of int8 `weights` of any shape, in C order."""
    flat = np.ascontiguousarray(weights, dtype=np.int8).reshape(-1)
    kept = flat != 0
    if not kept.any():
        kept[0] = True  # a tensor without elements is more than some readers of ONNX expect
    return Packed(np.packbits(kept, bitorder="little"), flat[kept])
