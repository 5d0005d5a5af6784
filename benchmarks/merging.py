"""Does one convolution in place of two pay? A branch as its least-squares linear map, against half its inner width.

    python -m benchmarks.merging run --net resnet20

A branch (3x3, batch norm, relu, 3x3, batch norm) of equal shape in and out becomes one 3x3 convolution with a bias:
the activation between goes, and what is left of the two is solved for, as LayerMerge merges layers
(arXiv:2406.12837). At the same multiply-adds the branch keeps half of its inner channels (by structured OBS) and its
second convolution is solved. Both are solved from the inputs that the changed network has, towards the dense stream,
on 256 training images and block after block; KL to the dense outputs and top-1 are on 1,000 test images. Nothing is
trained.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.baseline import baseline, path_of, start
from benchmarks.cifar10 import cifar10
from benchmarks.kept import changing, judged_lines, not_in, read
from benchmarks.models import PUBLISHED, Block, ResNet
from deploypruner.losses import label_parts
from deploypruner.train.least_squares import NormalEquations, columns, outputs
from deploypruner.train.obs import Reader, eliminate

RESULTS = Path(__file__).parent / "results" / "merging.json"
_POSITIONS, _RIDGE = 64, 1e-3
_SAME = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
_results = click.option("--results", type=click.Path(path_type=Path), default=RESULTS, show_default=True)


class Linear(nn.Module):
    """A block whose branch is one convolution."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, 1, 1)
        self.conv.weight.data, self.conv.bias.data = weight, bias  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, H, W]
        return F.relu(x + self.conv(x))


class Narrow(nn.Module):
    """A block with some of its inner channels, and its second convolution solved anew."""

    def __init__(self, block: Block, kept: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.block, self.kept = block, kept
        self.conv = nn.Conv2d(len(kept), weight.shape[0], 3, 1, 1)
        self.conv.weight.data, self.conv.bias.data = weight, bias  # type: ignore[union-attr]

    def inner(self, x: Tensor) -> Tensor:
        return inner(self.block, x)[:, self.kept]

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, C, H, W]
        return F.relu(x + self.conv(self.inner(x)))


def inner(block: Block, x: Tensor) -> Tensor:
    return F.relu(block.bn1(block.conv1(x)))


def branch(block: Block, x: Tensor) -> Tensor:
    return block.bn2(block.conv2(inner(block, x)))


# ---------------------------------------------------------------------- the ways


def merged(block: Block, x: Tensor, missing: Tensor) -> nn.Module:
    """One convolution from the block's input to what its branch should have added."""
    return Linear(*_solved(_rows(x), missing, x.shape[1]))


def halved(block: Block, x: Tensor, missing: Tensor) -> nn.Module:
    """Half of the inner channels, those that the second convolution misses least."""
    y = inner(block, x)
    rows, weight = _rows(y), block.conv2.weight.flatten(1).mT
    taps = torch.arange(9)
    owned = torch.arange(y.shape[1])[:, None] * 9 + taps
    with_bias = torch.cat([weight, weight.new_zeros(1, weight.shape[1])])
    order = eliminate([Reader(rows.mT @ rows, with_bias, owned)]).order
    kept = torch.as_tensor(order[len(order) // 2 :].copy()).sort().values
    return Narrow(block, kept, *_solved(_rows(y[:, kept]), missing, len(kept)))


def dropped(block: Block, x: Tensor, missing: Tensor) -> nn.Module:
    """No branch at all."""
    return nn.ReLU()


def whole(block: Block, x: Tensor, missing: Tensor) -> nn.Module:
    return block


WAYS: dict[str, Callable[[Block, Tensor, Tensor], nn.Module]] = {
    "dense": whole,
    "one convolution": merged,
    "half the inner width": halved,
    "no branch": dropped,
}


def _rows(x: Tensor) -> Tensor:
    """[n, 9 C + 1] patches and a one, at the same positions for every way."""
    weight = torch.empty(1, x.shape[1], 3, 3)
    rows = columns("conv2d", {**_SAME, "weight": weight}, x, _picked(x))[0]
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)


def _picked(x: Tensor) -> Tensor:
    return torch.randperm(x[0, 0].numel(), generator=torch.Generator().manual_seed(0))[:_POSITIONS]


def _solved(rows: Tensor, missing: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    targets = outputs("conv2d", 1, missing, _picked(missing))[0]
    sums = NormalEquations(1, rows.shape[1], targets.shape[1])
    sums.add(rows[None], targets[None])
    found = sums.solve(_RIDGE)[0].float()
    return found[:-1].mT.reshape(-1, channels, 3, 3).contiguous(), found[-1].contiguous()


# ---------------------------------------------------------------------- runs


@click.group()
def main() -> None:
    """Run, then table."""
    torch.set_num_threads(1)


@main.command()
@click.option("--net", type=click.Choice(sorted(PUBLISHED)), default="resnet20", show_default=True)
@click.option("--held-out", default=1000, show_default=True)
@_results
def run(net: str, held_out: int, results: Path) -> None:
    """Change the blocks of every stage that have the same shape in and out, and all of them."""
    not_in(RESULTS, None if held_out == 1000 else held_out, results)
    model = baseline(net) if path_of(net).exists() else start(net)
    assert isinstance(model, ResNet)
    data = cifar10(256, held_out)
    (x, _), *_ = data.train.epoch(batch_size=256)
    test = list(data.val.epoch(batch_size=250))
    known = torch.cat([part for _, labels in test for part in label_parts(labels)])
    with torch.no_grad():
        dense = torch.cat([model(*inputs) for inputs, _ in test])
        for stages in ((1,), (2,), (3,), (1, 2, 3)):
            for name, way in WAYS.items():
                key = f"{net} {'+'.join(map(str, stages))} {name}"
                if key in read(results):
                    continue
                changed = changed_by(way, model, x[0], stages)
                scores = torch.cat([changed(*inputs) for inputs, _ in test])
                divergence = F.kl_div(
                    scores.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean"
                )
                right = (scores.argmax(1) == known).double().mean()
                with changing(results) as rows:
                    rows[key] = {"kl": float(divergence), "top1": 100 * float(right)}
                click.echo(f"{key}: KL {divergence:.3f}, top-1 {100 * right:.1f} %", err=True)
    click.echo(markdown(read(results)))


@main.command()
@_results
def table(results: Path) -> None:
    """Print what there is."""
    click.echo(markdown(read(results)))


def changed_by(
    way: Callable[[Block, Tensor, Tensor], nn.Module], model: ResNet, x: Tensor, stages: tuple[int, ...]
) -> ResNet:
    """A copy of the model with those blocks replaced, each solved from what the copy gives before it."""
    found = copy.deepcopy(model)
    ours = theirs = F.relu(model.bn1(model.conv1(x)))
    for number in (1, 2, 3):
        layer: Mapping[str, Any] = dict(getattr(model, f"layer{number}").named_children())
        for name, block in layer.items():
            after = block(theirs)
            if number in stages and not block.added and block.stride == 1:
                wanted = theirs + branch(block, theirs)  # the stream before its relu
                getattr(found, f"layer{number}")[int(name)] = way(block, ours, wanted - ours)
            ours, theirs = getattr(found, f"layer{number}")[int(name)](ours), after
    return found.eval()


def markdown(rows: dict[str, Any]) -> str:
    """One line for each set of stages."""
    lines = ["| net | stages | " + " | ".join(WAYS) + " |", "|---|---|" + "--:|" * len(WAYS)]
    return "\n".join(lines + judged_lines(rows, 2, list(WAYS)))


if __name__ == "__main__":
    main()
