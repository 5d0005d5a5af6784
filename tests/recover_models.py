"""A small network and data for the tests of recovery."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploypruner.recipe.finetune import FinetuneSettings
from deploypruner.train.batches import Batch

CLASSES = 3


class Net(nn.Module):
    def __init__(self, dropout: float = 0.25) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(F.relu(self.bn(self.conv(x)))).mean(dim=(2, 3)))


@dataclass
class Images:
    """Pictures whose brightness tells the class."""

    count: int = 40
    labelled: bool = True
    poison: int | None = None  # the epoch seed whose data is NaN

    @property
    def samples(self) -> int:
        return self.count

    def epoch(self, *, batch_size: int, seed: int, shuffle: bool, augment: bool) -> Iterator[Batch]:
        fixed = torch.Generator().manual_seed(0)
        y = torch.randint(0, CLASSES, (self.count,), generator=fixed)
        x = torch.randn(self.count, 1, 5, 5, generator=fixed) * 0.3 + y.view(-1, 1, 1, 1)
        varied = torch.Generator().manual_seed(seed)
        order = torch.randperm(self.count, generator=varied) if shuffle else torch.arange(self.count)
        if shuffle and self.poison == seed:
            x = x * math.nan
        for rows in order.split(batch_size):
            yield (x[rows],), y[rows] if self.labelled else None


def net(seed: int = 0, dropout: float = 0.25) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net(dropout)


def same(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


QUICK = FinetuneSettings(epochs=3, batch_size=8, lr=0.05, amp="off")


def interrupted_at(number: int) -> Callable[[nn.Module], float]:
    """A validation during which somebody presses Ctrl-C: the first so many minus one go well."""
    calls = count(1)

    def validate(module: nn.Module) -> float:
        if next(calls) == number:
            raise KeyboardInterrupt
        return 0.0

    return validate
