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

from deploypruner.errors import InputError

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


def unpack(packed: Packed, shape: tuple[int, ...], *, name: str = "") -> Ints:
    """The inverse of `pack`.

    Args:
        packed: Mask and values.
        shape: Of the weights.
        name: Whose weights they are, for the message.

    Raises:
        InputError: The mask has another length, or its set bits are not as many as the values.
    """
    count = int(np.prod(shape, dtype=np.int64))
    whose = f"packed weights of '{name}'" if name else "packed weights"
    hint = "the file is damaged; make it again with `deploypruner sparsify` or `compile`"
    if packed.mask.size != -(-count // 8):
        raise InputError(
            f"{whose}: the mask has {packed.mask.size:,} bytes, {count:,} weights need {-(-count // 8):,}", hint=hint
        )
    kept = np.unpackbits(packed.mask, count=count, bitorder="little").astype(bool)
    if int(kept.sum()) != packed.values.size:
        raise InputError(
            f"{whose}: the mask keeps {int(kept.sum()):,} weights, and there are {packed.values.size:,} values",
            hint=hint,
        )
    flat = np.zeros(count, np.int8)
    flat[kept] = packed.values
    return flat.reshape(shape)
