"""What a multiplication of a sparse row costs by where its input lies: near or far, in one line or across two.

    python -m benchmarks.load_limits          # seconds; prints a table

A layer of 1024 inputs (512 under 3 x 3) at 14 x 14 with random blocks 1x4, 2x4 and 4x4. Blocks of a `far` one are
anywhere, so that a tile of four vectors goes through 64 KB or more again and again; those of a `near` one are among
the first 128 (64) inputs, which the first-level cache holds. 1 x 1 kernels load whole lines, most loads of 3 x 3 ones
lie across two. Numbers are slopes between two counts of blocks, so that rounding and copying do not count, in
multiplications at the peak of VPDPBUSD, measured in the same run.
"""

from __future__ import annotations

import time

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.roofline import measure_peak
from deploypruner.sparse.arrays import aligned, c4_shape, pointer
from deploypruner.sparse.bindings import ConvShape, create
from deploypruner.sparse.library import load
from deploypruner.sparse.packed import pack

_OUTPUTS, _SIDE, _CALLS = 256, 14, 300
_SHARES = (0.1, 0.3)
# Inputs, among how many of them blocks are, kernel.
CASES = (
    ("1 x 1, near", 1024, 128, 1),
    ("1 x 1, far", 1024, 1024, 1),
    ("3 x 3, near", 512, 64, 3),
    ("3 x 3, far", 512, 512, 3),
)


def weights_of(inputs: int, among: int, kernel: int, rows: int, blocks: int) -> NDArray[np.int8]:
    """int8 with so many blocks of four inputs for each output, the same for `rows` neighbours."""
    random = np.random.default_rng(0)
    taps, quads = kernel**2, among // 4
    keep = np.zeros((_OUTPUTS // rows, taps * quads), bool)
    for row in keep:
        row[random.permutation(taps * quads)[:blocks]] = True
    wide = np.zeros((_OUTPUTS // rows, inputs // 4, taps), bool)
    wide[:, :quads] = keep.reshape(-1, quads, taps)
    mask = wide.repeat(rows, 0).repeat(4, 1)
    values = random.integers(1, 127, mask.shape).astype(np.int8)
    return values * mask


def seconds_of(inputs: int, kernel: int, weights: NDArray[np.int8]) -> tuple[float, int]:
    """Of one call, the median; and multiplications of a vector."""
    pad, library, packed = kernel // 2, load(), pack(weights)
    shape = ConvShape(inputs, _OUTPUTS, _SIDE, _SIDE, kernel=(kernel, kernel), pads=(pad, pad, pad, pad))
    scale, bias = np.full(_OUTPUTS, 1e-4, np.float32), np.zeros(_OUTPUTS, np.int32)
    handle = create(shape, packed.mask, packed.values, scale=scale, bias=bias)
    x, y = aligned(c4_shape(1, inputs, _SIDE**2)), aligned(c4_shape(1, _OUTPUTS, _SIDE**2))
    scratch = aligned((int(library.dp_conv_scratch_bytes(handle, 1)),))
    arguments = (handle, 1, pointer(x), None, pointer(y), pointer(scratch), 1, None, None)
    taken = []
    for _ in range(_CALLS):
        began = time.perf_counter()
        library.dp_conv_run(*arguments)
        taken.append(time.perf_counter() - began)
    vectors = -(-(_SIDE * (_SIDE + 2 * pad)) // 16)
    return float(np.median(taken)), int(library.dp_conv_steps(handle)) * vectors


@click.command()
def main() -> None:
    """Time and print."""
    rate = measure_peak()["vpdpbusd"]
    click.echo("| | 1x4 | 2x4 | 4x4 |\n|---|--:|--:|--:|")
    for name, inputs, among, kernel in CASES:
        cells = []
        for rows in (1, 2, 4):
            counts = [round(share * kernel**2 * min(among, 128) / 4) for share in _SHARES]
            (one, few), (other, many) = (
                seconds_of(inputs, kernel, weights_of(inputs, among, kernel, rows, count)) for count in counts
            )
            cells.append(f"{(other - one) / (many - few) * rate:.2f}")
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
