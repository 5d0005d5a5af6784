"""How much of a network's squared weights each sparse pattern can keep, by the width of the layers: no training.

    python -m benchmarks.patterns_kept        # seconds; prints a table

The share relative to unstructured zeros is what a pattern's constraint costs before training. Normal weights stand
for layers of other widths than those of the trained network.
"""

from __future__ import annotations

from collections.abc import Sequence

import click
import torch
from torch import Tensor

from benchmarks.baseline import baseline
from deploypruner.sparsity.patterns import make_pattern
from deploypruner.sparsity.patterns.distribution import units_to_keep

PATTERNS, SPARSITIES = ("unstructured", "nm64", "1x4", "2x4", "4x4"), (0.7, 0.8, 0.9)
WIDTHS = (16, 32, 64, 256)


def kept(weights: Sequence[Tensor], pattern: str, sparsity: float) -> float:
    """Share of the sum of squares under the best mask, one threshold over all layers.

    Args:
        weights: [O, I, *kernel] each.
        pattern: Name.
        sparsity: Share of zeros.
    """
    chosen, saliencies = make_pattern(pattern), [w.square() for w in weights]
    counts = units_to_keep(chosen, saliencies, sparsity, distribution="global")
    masks = [chosen.units(s).mask(s, count) for s, count in zip(saliencies, counts, strict=True)]
    return sum(float((s * m).sum()) for s, m in zip(saliencies, masks, strict=True)) / sum(
        float(s.sum()) for s in saliencies
    )


def networks(net: str) -> dict[str, list[Tensor]]:
    """The trained network's convolutions, all and by inputs, and normal 3x3 layers of one width each."""
    every = [p.detach() for p in baseline(net).parameters() if p.dim() == 4 and p.shape[1] > 3]
    found = {f"trained {net}": every}
    for inputs in sorted({w.shape[1] for w in every}):
        found[f"its layers of {inputs} inputs"] = [w for w in every if w.shape[1] == inputs]
    generator = torch.Generator().manual_seed(0)
    return found | {f"normal, {n} inputs": [torch.randn(n, n, 3, 3, generator=generator)] for n in WIDTHS}


@click.command()
@click.option("--net", default="resnet20", show_default=True)
def main(net: str) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    click.echo(f"| layers | zeros | {' | '.join(PATTERNS)} |\n|---|--:|{'--:|' * len(PATTERNS)}")
    for name, weights in networks(net).items():
        for sparsity in SPARSITIES:
            cells = [f"{kept(weights, pattern, sparsity):.3f}" for pattern in PATTERNS]
            click.echo(f"| {name} | {sparsity:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
