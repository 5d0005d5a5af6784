"""Small random networks dealt from the deck of operators.

A network opens each card with a convolution of its own, joins some of them by additions and concatenations, and
ends in a classifier. Every deal uses every card once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.lively import liven
from tests.deck import DECK, SIDE

CARDS_PER_NET = 8


class Dealt(nn.Module):
    """A random network of some cards."""

    def __init__(self, cards: list[str], rng: np.random.Generator) -> None:
        super().__init__()
        self.opens, self.cards, self.joins = nn.ModuleList(), nn.ModuleList(), []
        x, seen = torch.zeros(2, 3, SIDE, SIDE), list[Tensor]()
        for name in cards:
            width = int(rng.choice([8, 12, 16]))
            self.opens.append(nn.Conv2d(x.shape[1], width, int(rng.choice([1, 3])), padding="same"))
            self.cards.append(DECK[name](width))
            self.joins.append(self._join(x := self._step(len(self.cards) - 1, x), seen, rng))
            x = self._joined(x, self.joins[-1], seen)
            seen.append(x)
        self.head = nn.Linear(x.shape[1], 5)

    @staticmethod
    def _join(x: Tensor, seen: list[Tensor], rng: np.random.Generator) -> tuple[str, int] | None:
        """Add an earlier result of the same shape or concatenate one of few channels, sometimes."""
        same = [i for i, y in enumerate(seen) if y.shape == x.shape]
        narrow = [i for i, y in enumerate(seen) if y.shape[1] + x.shape[1] <= 32]
        if same and rng.random() < 0.6:
            return "add", int(rng.choice(same))
        return ("cat", int(rng.choice(narrow))) if narrow and rng.random() < 0.3 else None

    @staticmethod
    def _joined(x: Tensor, join: tuple[str, int] | None, seen: list[Tensor]) -> Tensor:
        if join is None:
            return x
        kind, i = join
        return x + seen[i] if kind == "add" else torch.cat([seen[i], x], 1)

    def _step(self, i: int, x: Tensor) -> Tensor:
        x = self.cards[i](self.opens[i](x))
        return x if x.shape[2:] == (SIDE, SIDE) else F.adaptive_avg_pool2d(x, SIDE)

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for i, join in enumerate(self.joins):
            x = self._joined(self._step(i, x), join, seen)
            seen.append(x)
        return self.head(x.mean((2, 3)))


def deal(seed: int) -> list[list[str]]:
    """The whole deck, shuffled, in hands of a few cards."""
    order = np.random.default_rng(seed).permutation(sorted(DECK)).tolist()
    return [order[i : i + CARDS_PER_NET] for i in range(0, len(order), CARDS_PER_NET)]


def dealt(seed: int, hand: int) -> tuple[nn.Module, Tensor]:
    """Network number `hand` of a deal, in eval mode, and two samples."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Dealt(deal(seed)[hand], np.random.default_rng((seed, hand)))
        liven(net)
        return net.eval(), torch.randn(2, 3, SIDE, SIDE)
