"""Arrays in the layout of the kernels, and what is refused before C++ reads past the end of one."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.errors import KernelError
from deploypruner.sparse.layer import PIXELS, QUAD

ALIGN = 64
Bytes = NDArray[np.uint8]
_HINT = "`bindings.to_c4` and `arrays.aligned` of deploypruner.sparse make what the kernels accept"
_INT32 = 2**31


def aligned(shape: tuple[int, ...]) -> Bytes:
    """An uninitialized array of bytes whose base is 64-byte aligned."""
    count = int(np.prod(shape))
    raw = np.empty(count + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + count].reshape(shape)


def c4_shape(batch: int, channels: int, pixels: int) -> tuple[int, int, int, int]:
    """[N, Q, P, 4] of so many channels and pixels."""
    return batch, -(-channels // QUAD), -(-pixels // PIXELS) * PIXELS, QUAD


def check_array(what: str, array: Any, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
    """Refuse what is no array of this type and shape.

    Raises:
        KernelError: `what` is named.
    """
    found = np.asarray(array)
    if found.dtype != dtype or found.shape != shape:
        wanted = np.dtype(dtype).name
        raise KernelError(
            f"{what} must be {wanted} {list(shape)}, and is {found.dtype.name} {list(found.shape)}", hint=_HINT
        )


def check_c4(what: str, array: Any, shape: tuple[int, ...]) -> None:
    """Refuse what is no C4 activation of this shape that a kernel can read in place.

    Raises:
        KernelError: Another type or shape, gaps between its bytes, or a base that is not 64-byte aligned.
    """
    check_array(what, array, np.uint8, shape)
    if not array.flags.c_contiguous or array.ctypes.data % ALIGN:
        raise KernelError(f"{what} must be contiguous and begin at a multiple of {ALIGN} bytes", hint=_HINT)


def check_sizes(sizes: Mapping[str, int]) -> None:
    """Refuse numbers that are not positive, or do not fit 32 bits.

    Raises:
        KernelError: The first such number is named.
    """
    for name, size in sizes.items():
        if not 0 < size < _INT32:
            raise KernelError(f"{name} must be in 1 .. {_INT32 - 1}, and is {size}", hint=_HINT)


def overlap(one: Bytes, other: Bytes) -> bool:
    """Do two contiguous arrays share a byte?"""
    return one.ctypes.data < other.ctypes.data + other.nbytes and other.ctypes.data < one.ctypes.data + one.nbytes


def pointer(array: NDArray[Any]) -> ctypes.c_void_p:
    """Its first byte."""
    return ctypes.c_void_p(array.ctypes.data)
