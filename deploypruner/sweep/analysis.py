"""What a population of trained recipes says: distributions of the drop, and the drop along the computation budget.

Source: He et al., arXiv:2304.09453. Theirs: the distribution of the accuracy drop of a sub-space, winners as the
recipes of minimal drop, the mean computation budget (mCB) of a bucket of parameters. Its exact normalisation was not
to be read: here it is MACs per parameter over that of the dense model. Ours: the parabola, its bootstrap interval,
and every test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from deploypruner.sweep.records import Bucket, DenseModel, Optimum, Sample
from deploypruner.sweep.space import STD_BUCKETS

FEWEST = 8
"""Of recipes, below which nothing is fitted."""

_BOOTSTRAPS = 2000
_PERMUTATIONS = 4000
_WINNERS = 0.1
_LEAST_WINNERS = 3
_PARAMETER_BUCKET = 0.05

Floats = NDArray[np.float64]


def buckets_of(samples: Sequence[Sample]) -> tuple[Bucket, ...]:
    """The population by the standard deviation of the ratios; what lies beyond the last limit is in the last."""
    inner = STD_BUCKETS[1:-1]
    edges = list(pairwise(STD_BUCKETS))
    places = np.digitize([sample.std for sample in samples], inner)
    found = []
    for place, (low, high) in enumerate(edges):
        drops = sorted(sample.drop for sample, at in zip(samples, places, strict=True) if at == place)
        if drops:
            found.append(Bucket(low, high, tuple(drops)))
    return tuple(found)


def winners_of(samples: Sequence[Sample]) -> list[Sample]:
    """The tenth of the population that loses least, at least three of them."""
    count = max(_LEAST_WINNERS, round(_WINNERS * len(samples)))
    return sorted(samples, key=lambda sample: (sample.drop, sample.name))[:count]


def optimum_of(samples: Sequence[Sample], dense: DenseModel, *, seed: int) -> Optimum | None:
    """The computation budget per parameter at which the drop is smallest; None of too few recipes,
    or where all cost or lose the same.

    Args:
        samples: The population.
        dense: What budgets are relative to.
        seed: Of the bootstrap.
    """
    x = np.array([sample.budget(dense) for sample in samples])
    y = np.array([sample.drop for sample in samples])
    if len(x) < FEWEST or len(np.unique(x)) < 3 or len(np.unique(y)) < 2:
        return None
    low, high = float(x.min()), float(x.max())
    at, drop, _ = _minimum(x, y, low, high)
    rng = np.random.default_rng([seed, 0])
    drawn = []
    for _ in range(_BOOTSTRAPS):
        chosen = rng.integers(0, len(x), len(x))
        if len(np.unique(x[chosen])) >= 3:
            drawn.append(_minimum(x[chosen], y[chosen], low, high))
    places = np.array([place for place, _, _ in drawn])
    interval = (float(np.quantile(places, 0.025)), float(np.quantile(places, 0.975)))
    return Optimum(at, interval, drop, float(np.mean([inside for _, _, inside in drawn])), (low, high))


def _minimum(x: Floats, y: Floats, low: float, high: float) -> tuple[float, float, bool]:
    """Where the parabola through the points is smallest between two ends, its value, and whether that is inside."""
    middle, scale = float(x.mean()), float(x.std()) or 1.0
    c, b, a = np.polynomial.polynomial.polyfit((x - middle) / scale, y, 2)

    def value(place: float) -> float:
        z = (place - middle) / scale
        return float(c + b * z + a * z * z)

    vertex = middle - scale * float(b) / (2 * float(a)) if a > 0 else np.inf
    if low < vertex < high:
        return vertex, value(vertex), True
    best = min((low, high), key=value)
    return best, value(best), False


def parameter_share(sample: Sample, dense: DenseModel) -> float:
    """Parameters of a recipe over those of the dense model."""
    return sample.params / dense.params


def best_parameter_bucket(samples: Sequence[Sample], dense: DenseModel) -> tuple[float, float, int, int]:
    """The bucket of 5 % of the parameters with most winners: its limits, its winners, its recipes."""
    places = {s.name: int(parameter_share(s, dense) / _PARAMETER_BUCKET) for s in samples}
    won = [places[sample.name] for sample in winners_of(samples)]
    best = max(sorted(set(won)), key=won.count)
    low = best * _PARAMETER_BUCKET
    return low, low + _PARAMETER_BUCKET, won.count(best), list(places.values()).count(best)


def concentration(
    samples: Sequence[Sample], of: Callable[[Sample], float], *, seed: int
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Do the winners lie closer together than as many recipes taken at random?

    Args:
        samples: The population.
        of: What is looked at of a recipe.
        seed: Of the permutations.

    Returns:
        Least and greatest value among the winners, the same among all, and the p-value: the share of random choices
        that spread (standard deviation) no more than the winners do.
    """
    won = [of(sample) for sample in winners_of(samples)]
    every = np.array([of(sample) for sample in samples])
    rng = np.random.default_rng([seed, 1])
    spread = float(np.std(won))
    drawn = [np.std(rng.choice(every, len(won), replace=False)) for _ in range(_PERMUTATIONS)]
    closer = sum(value <= spread + 1e-12 for value in drawn)
    return (min(won), max(won)), (float(every.min()), float(every.max())), (1 + closer) / (1 + _PERMUTATIONS)
