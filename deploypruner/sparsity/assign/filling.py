"""What the ways to fill a layer keep and cost: its weight really projected, its price corrected by measurement."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from deploypruner.sparse.cost import Rates
from deploypruner.sparse.layer import Weighted
from deploypruner.sparsity.assign.solver import DENSE, PatternOption, worthwhile
from deploypruner.sparsity.patterns import CANDIDATES, make_pattern
from deploypruner.sparsity.patterns.ladder import Rung, ladder

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
REFERENCE = "1x4"
# A layer that is timed further off its prediction was disturbed, or the formula does not hold there.
_CORRECTION = (0.5, 2.0)


@dataclass
class Fillable:
    """A layer that may have zeros.

    Args:
        layer: Without zeros.
        options: Of every pattern and sparsity, priced by the rates of the machine.
        weight: Its parameter, [O, I, *kernel].
        factors: Pattern -> measured / predicted; of a pattern that was not measured, that of the reference.
    """

    layer: Weighted
    options: tuple[PatternOption, ...]
    weight: Tensor
    factors: dict[str, float] = field(default_factory=dict)

    @staticmethod
    def of(layer: Weighted, weight: Tensor, rates: Rates, *, reference: float) -> Fillable:
        """Project the weight onto every pattern at every sparsity, that of the reference among them."""
        zeros = (
            PatternOption(name, rung.sparsity, rung.kept, rates.sparse(_projected(layer, rung)))
            for name in CANDIDATES
            for rung in _rungs(name, weight, sorted({*SPARSITIES, reference}))
        )
        return Fillable(layer, (PatternOption(DENSE, 0.0, 1.0, rates.sparse(layer)), *zeros), weight)

    def ladder(self) -> list[PatternOption]:
        """Options worth choosing, at corrected prices."""
        return worthwhile([replace(option, ns=option.ns * self.factor(option.pattern)) for option in self.options])

    def factor(self, pattern: str) -> float:
        """Measured / predicted."""
        return self.factors.get(pattern, self.factors.get(REFERENCE, 1.0))

    def option(self, pattern: str, sparsity: float) -> PatternOption:
        """One of all options, at its corrected price."""
        found = next(o for o in self.options if (o.pattern, o.sparsity) == (pattern, sparsity))
        return replace(found, ns=found.ns * self.factor(pattern))

    def filled(self, option: PatternOption) -> Weighted:
        """The layer with the zeros of an option."""
        if option.pattern == DENSE:
            return self.layer
        (rung,) = _rungs(option.pattern, self.weight, [option.sparsity])
        return _projected(self.layer, rung)

    def correct(self, option: PatternOption, ns: float) -> None:
        """Learn what the layer takes with an option."""
        plain = next(o.ns for o in self.options if (o.pattern, o.sparsity) == (option.pattern, option.sparsity))
        self.factors[option.pattern] = float(np.clip(ns / plain, *_CORRECTION))


def _rungs(pattern: str, weight: Tensor, sparsities: Iterable[float]) -> Iterator[Rung]:
    """By the saliency of every mask: a weight's square."""
    yield from ladder(make_pattern(pattern), weight.detach().square(), list(sparsities))


def _projected(layer: Weighted, rung: Rung) -> Weighted:
    mask = rung.mask.cpu().numpy().reshape(layer.weights.shape)
    return replace(layer, weights=np.where(mask, layer.weights, np.int8(0)))
