"""What a layer takes under each pattern of blocks at equal sparsity, in the kernels alone, everything in the caches.

    python -m benchmarks.pattern_layers                       # layers of ResNet-50; prints a table
    DEPLOYPRUNER_TARGET=avx2 python -m benchmarks.pattern_layers

Random blocks, no residual, one thread; the patterns take turns call by call, and a number is the median.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from deploypruner.sparse.arrays import aligned, c4_shape, pointer
from deploypruner.sparse.bindings import ConvShape, create
from deploypruner.sparse.library import active_target, load
from deploypruner.sparse.packed import pack
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.ladder import ladder

PATTERNS = ("1x4", "2x4", "4x4")
# Channels in and out, height and width, kernel.
LAYERS = (
    (64, 64, 56, 3),
    (128, 128, 28, 3),
    (256, 256, 14, 3),
    (512, 512, 7, 3),
    (64, 256, 56, 1),
    (256, 64, 56, 1),
    (512, 128, 28, 1),
    (1024, 256, 14, 1),
    (256, 1024, 14, 1),
    (2048, 512, 7, 1),
)
_CALLS = 200


def weights_of(shape: tuple[int, int, int, int], pattern: str, sparsity: float) -> NDArray[np.int8]:
    """Random int8 in random blocks."""
    saliency = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    (rung,) = ladder(make_pattern(pattern), saliency, [sparsity])
    values = np.random.default_rng(0).integers(1, 127, shape).astype(np.int8)
    return values * rung.mask.numpy()


def prepared(layer: tuple[int, int, int, int], pattern: str, sparsity: float) -> Callable[[], Any]:
    """A call of the layer."""
    channels_in, channels_out, side, kernel = layer
    pad = kernel // 2
    shape = ConvShape(channels_in, channels_out, side, side, kernel=(kernel, kernel), pads=(pad, pad, pad, pad))
    packed, library = pack(weights_of((channels_out, channels_in, kernel, kernel), pattern, sparsity)), load()
    scale, bias = np.full(channels_out, 1e-4, np.float32), np.zeros(channels_out, np.int32)
    handle = create(shape, packed.mask, packed.values, scale=scale, bias=bias)
    x, y = aligned(c4_shape(1, channels_in, side**2)), aligned(c4_shape(1, channels_out, side**2))
    x[:] = np.random.default_rng(0).integers(0, 128, x.shape)
    scratch = aligned((int(library.dp_conv_scratch_bytes(handle, 1)),))
    arguments = (handle, 1, pointer(x), None, pointer(y), pointer(scratch), 1, None, None)

    def call(_alive: Any = (x, y, scratch)) -> None:
        library.dp_conv_run(*arguments)

    return call


@click.command()
@click.option("--sparsity", "sparsities", multiple=True, type=float, default=(0.8, 0.9), show_default=True)
def main(sparsities: tuple[float, ...]) -> None:
    """Time and print."""
    heads = [f"{pattern}, {sparsity:.0%}" for sparsity in sparsities for pattern in PATTERNS]
    click.echo(f"{active_target()}, us\n\n| layer | {' | '.join(heads)} |\n|---|{'--:|' * len(heads)}")
    for layer in LAYERS:
        calls = [prepared(layer, pattern, sparsity) for sparsity in sparsities for pattern in PATTERNS]
        taken = np.zeros((_CALLS, len(calls)))
        for row in taken:
            for place, call in enumerate(calls):
                began = time.perf_counter()
                call()
                row[place] = time.perf_counter() - began
        name = "{} to {}, {k} x {k} at {s} x {s}".format(*layer[:2], k=layer[3], s=layer[2])
        click.echo(f"| {name} | {' | '.join(f'{us:.0f}' for us in 1e6 * np.median(taken, axis=0))} |")


if __name__ == "__main__":
    main()
