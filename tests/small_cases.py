"""Problems of choosing widths that are small enough to enumerate, and their exact answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.search.choices import WidthChoice

KINDS = ("chain", "residual", "dense", "blocks")


@dataclass(frozen=True)
class Layer:
    """ms = base + rate * blocks(sum of input groups, or `fixed`) * blocks(output group, or `fixed`)."""

    inputs: tuple[int, ...]
    output: int | None
    base: float
    rate: float


@dataclass(frozen=True)
class Case:
    """Layers between groups of up to 48 channels that kernels see in blocks."""

    choices: tuple[WidthChoice, ...]
    layers: tuple[Layer, ...]
    block: int

    @property
    def order(self) -> dict[str, NDArray[np.int64]]:
        return {c.group: np.arange(int(c.widths[-1])) for c in self.choices} | {
            c.branch: np.zeros(1, np.int64) for c in self.choices if c.branch
        }

    def ms(self, widths: Sequence[Any]) -> Any:
        """Of widths per group; each may be an array, and they broadcast."""
        total: Any = 0.0
        for layer in self.layers:
            blocks = [sum(widths[i] for i in layer.inputs) if layer.inputs else 3]
            blocks.append(10 if layer.output is None else widths[layer.output])
            there = prod(np.asarray(n) > 0 for n in blocks) if self.drops else 1.0
            total = total + there * (layer.base + layer.rate * prod(-(-n // self.block) for n in blocks))
        return total

    @property
    def drops(self) -> bool:
        """Are there residual branches that may go?"""
        return any(choice.drops for choice in self.choices)

    def everything(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Milliseconds and worth of every plan there is."""
        grid = np.meshgrid(*(c.widths for c in self.choices), indexing="ij")
        worths = np.meshgrid(*(c.worth for c in self.choices), indexing="ij")
        return self.ms(grid), np.sum(worths, axis=0)

    def tally(self) -> CaseTally:
        return CaseTally(self)


class CaseTally:
    """Every group whole at first."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._place = {c.group: i for i, c in enumerate(case.choices)}
        self._branches = {c.branch: i for i, c in enumerate(case.choices) if c.branch}
        self._gone = set[int]()
        self._widths = [int(c.widths[-1]) for c in case.choices]

    @property
    def ms(self) -> float:
        return float(self._case.ms(self._there()))

    def _there(self) -> list[Any]:
        return [0 if i in self._gone else width for i, width in enumerate(self._widths)]

    def keep(self, group: str, channels: NDArray[np.int64]) -> float:
        if group in self._branches:
            (self._gone.discard if len(channels) else self._gone.add)(self._branches[group])
            return self.ms
        self._widths[self._place[group]] = len(channels)
        return self.ms

    def sweep(self, group: str, widths: NDArray[np.int64]) -> NDArray[np.float64]:
        mine = self._there()
        if group in self._branches:
            place = self._branches[group]
            mine[place] = np.asarray(widths) * self._widths[place]
        elif self._place[group] not in self._gone:
            mine[self._place[group]] = widths
        return np.broadcast_to(self._case.ms(mine), np.shape(widths)).astype(np.float64)


def draw(rng: np.random.Generator, kind: str) -> Case:
    """3 to 6 groups of 4 to 6 widths; scores and rates spread over an order of magnitude.

    Of kind "blocks" every group but the first, the stream, may go with its two layers.
    """
    groups, count, block = int(rng.integers(3, 7)), int(rng.integers(4, 7)), int(rng.choice([8, 16]))

    def layer(inputs: tuple[int, ...], output: int | None) -> Layer:
        return Layer(inputs, output, float(rng.uniform(0, 1)), float(np.exp(rng.normal())))

    ends: dict[str, list[tuple[tuple[int, ...], int | None]]] = {
        "chain": [((i - 1,) if i else (), i) for i in range(groups)] + [((groups - 1,), None)],
        "residual": [((), 0), *(pair for i in range(1, groups) for pair in (((0,), i), ((i,), 0))), ((0,), None)],
        "blocks": [((), 0), *(pair for i in range(1, groups) for pair in (((0,), i), ((i,), 0))), ((0,), None)],
        "dense": [*((tuple(range(i)), i) for i in range(groups)), (tuple(range(groups)), None)],
    }
    choices = []
    for i in range(groups):
        widths = np.arange(1, count + 1) * 8
        scores = np.sort(rng.gamma(0.7, size=8 * count))[::-1] * np.exp(0.7 * rng.normal())
        worth = np.cumsum(scores)[widths - 1]
        if kind == "blocks" and i:  # without the branch less is lost than with its narrowest width, now and then
            lost = float(rng.uniform(0.3, 1.5)) * float(worth[-1] - worth[0])
            choice = WidthChoice(f"g{i}", np.append(0, widths), np.append(worth[-1] - lost, worth), f"b{i}")
        else:
            choice = WidthChoice(f"g{i}", widths, worth)
        choices.append(choice)
    return Case(tuple(choices), tuple(layer(*pair) for pair in ends[kind]), block)
