"""Which pattern and how many zeros each layer gets: the most saliency that is predicted to fit into a time.

The same problem as widths for a budget of milliseconds, with the same solver: each layer has places (dense, or a
pattern at a sparsity), what they are worth adds up, and what they take does not, because a layer between two others
in our kernels costs no border. The time of a plan is that of its best sides, see `sparse.partition`. A layer's
own price is in one edge of that cut, so that its whole ladder follows from two cuts: with the layer dense, and with
it sparse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploypruner.errors import BudgetError
from deploypruner.search.choices import Floats, Walk
from deploypruner.search.solver import best_places, fastest
from deploypruner.sparse.partition import Sides

DENSE = "dense"


@dataclass(frozen=True)
class PatternOption:
    """One way to fill a layer.

    Args:
        pattern: Registered name, or "dense" for no zeros.
        sparsity: Share of zeros, 0 for none.
        kept: Share of the layer's saliency that stays, 0 to 1.
        ns: Predicted in our kernels.
    """

    pattern: str
    sparsity: float
    kept: float
    ns: float


@dataclass(frozen=True)
class Filling:
    """A way to fill every layer.

    Args:
        options: Layer number -> what it gets.
        sparse: Does each layer run in our kernels?
        ns: Predicted of all layers and their borders.
        kept: Mean of the layers' shares of saliency, over those that may have zeros.
    """

    options: Mapping[int, PatternOption]
    sparse: tuple[bool, ...]
    ns: float
    kept: float


class PatternWalk(Walk):
    """Options of layers; times are in milliseconds.

    Args:
        sides: Of all layers; it is changed.
        ladders: Layer number -> its options, from `worthwhile`.
    """

    def __init__(self, sides: Sides, ladders: Mapping[int, Sequence[PatternOption]]) -> None:
        super().__init__([np.array([option.kept for option in ladder]) for ladder in ladders.values()])
        self._sides, self._layers = sides, list(ladders)
        self._prices = [np.rint([option.ns for option in ladder]) for ladder in ladders.values()]
        for layer, prices in zip(self._layers, self._prices, strict=True):
            sides.price(layer, prices[-1])
        self._known: dict[int, Floats] = {}

    @property
    def ms(self) -> float:
        """See `Walk.ms`."""
        return self._sides.ns / 1e6

    def _moved(self, number: int, to: int) -> None:
        self._sides.price(self._layers[number], self._prices[number][to])
        self._known = {}

    def _times(self, number: int) -> Floats:
        if number not in self._known:
            layer, prices = self._layers[number], self._prices[number]
            dense = self._sides.with_dense(layer)
            others = self._sides.with_sparse(layer) - prices[self.at[number]]
            self._known[number] = np.minimum(dense, others + prices) / 1e6
        return self._known[number]


def worthwhile(options: Sequence[PatternOption]) -> list[PatternOption]:
    """Those that nothing beats in both saliency and time, by rising saliency; the last is the dense one."""
    found: list[PatternOption] = []
    for option in sorted(options, key=lambda o: (-o.kept, o.ns, o.pattern)):
        if not found or (option.ns < found[-1].ns and option.kept < found[-1].kept):
            found.append(option)
    dense = next(option for option in options if option.pattern == DENSE)
    if found[0] is not dense:  # nothing is lost by zeros where weights were zero before
        found = [dense, *(option for option in found if option.kept < dense.kept)]
    return found[::-1]


def fill(sides: Sides, ladders: Mapping[int, Sequence[PatternOption]], budget_ns: float, *, seed: int = 0) -> Filling:
    """The filling that keeps the most saliency within a time.

    Args:
        sides: Of all layers, each at its price in our kernels; it is changed.
        ladders: Layer number -> options of each layer that may have zeros, from `worthwhile`.
        budget_ns: For all layers and their borders.
        seed: Of the solver's restarts.

    Raises:
        BudgetError: The fastest filling takes longer. The message says both times.
    """
    walk = PatternWalk(sides, ladders)
    places = best_places(walk, budget_ns / 1e6, seed=seed)
    if places is None:
        raise BudgetError(
            f"{budget_ns / 1e6:.3g} ms are out of reach for the layers that may have zeros: at their sparsest they "
            f"are predicted to take {_fastest_ms(walk):.3g} ms",
            hint="ask for more time",
        )
    walk.go(places)
    ours = sides.sparse()
    options = {}
    for layer, place, ladder in zip(ladders, places, ladders.values(), strict=True):
        # Zeros in OpenVINO cost accuracy and save nothing.
        options[layer] = ladder[place] if ours[layer] else ladder[-1]
    kept = float(np.mean([option.kept for option in options.values()])) if options else 1.0
    return Filling(options, tuple(ours), float(sides.ns), kept)


def fastest_ns(sides: Sides, ladders: Mapping[int, Sequence[PatternOption]]) -> float:
    """Nanoseconds of the fastest filling there is; `sides` is changed."""
    return _fastest_ms(PatternWalk(sides, ladders)) * 1e6


def _fastest_ms(walk: Walk) -> float:
    fastest(walk)
    return walk.ms
