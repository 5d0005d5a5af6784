"""The paper's four conjectures as statements, with the evidence that populations give for or against each.

Source: He et al., "Network Pruning Spaces", arXiv:2304.09453, conjectures 1 to 4; paraphrased from a summary, as the
body was not to be read. The tests, and where a verdict begins, are ours: 5 % for a test, 95 % for an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deploypruner.sweep.analysis import (
    FEWEST,
    best_parameter_bucket,
    concentration,
    optimum_of,
    parameter_share,
    winners_of,
)
from deploypruner.sweep.records import Conjecture, DenseModel, Optimum, Sample

SUPPORTED, CONTRADICTED, NOT_SHOWN, NOT_TESTED = "supported", "contradicted", "not shown", "not tested"

_LEVEL = 0.05
# Budgets that differ by less than this, as a share, count as one: a space at fixed MACs is such.
_ALIKE = 0.03
# An interval of more than this share of what was tried says nothing of where the optimum is.
_WIDE = 0.5
# Regimes with which a curve can be fitted and one of them left out.
_FEWEST_REGIMES = 4

_CLAIMS = {
    1: "at a given cost there is an optimal number of parameters: winners have about as many",
    2: "at a given number of parameters there is an optimal number of MACs",
    3: "at a given cost the MACs per parameter of winners are close to those of the dense model, and grow as less "
    "may remain",
    4: "the smallest drop at a cost follows from the optimal MACs per parameter there",
}


@dataclass(frozen=True)
class CostRegime:
    """A population of one cost.

    Args:
        name: The cost, as on the command line: "--macs 0.5".
        samples: The population.
        dense: What it is compared with.
    """

    name: str
    samples: tuple[Sample, ...]
    dense: DenseModel

    @property
    def remaining(self) -> float:
        """Median share of the MACs that remain."""
        return float(np.median([sample.macs for sample in self.samples])) / self.dense.macs


def conjectures(regime: CostRegime, others: Sequence[CostRegime] = (), *, seed: int) -> tuple[Conjecture, ...]:
    """All four.

    Args:
        regime: The population.
        others: Populations of the same model at other costs; conjectures 3 and 4 are about several.
        seed: Of bootstrap and permutations.
    """
    if len(regime.samples) < FEWEST:
        few = f"{len(regime.samples)} recipes were trained; nothing is said of fewer than {FEWEST}"
        return tuple(Conjecture(number, claim, NOT_TESTED, few) for number, claim in _CLAIMS.items())
    every = [regime, *(other for other in others if len(other.samples) >= FEWEST)]
    return (_first(regime, seed), _second(regime, seed), _third(regime, every, seed), _fourth(every, seed))


def _first(regime: CostRegime, seed: int) -> Conjecture:
    won, every, p = concentration(regime.samples, lambda s: 100 * parameter_share(s, regime.dense), seed=seed)
    low, high, inside, size = best_parameter_bucket(regime.samples, regime.dense)
    count = len(winners_of(regime.samples))
    evidence = (
        f"The {count} winners of {len(regime.samples)} recipes have {won[0]:.1f} to {won[1]:.1f} % of the "
        f"parameters, all "
        f"recipes {every[0]:.1f} to {every[1]:.1f} %; {inside} of them are among the {size} recipes with "
        f"{100 * low:.0f} to "
        f"{100 * high:.0f} %. As many recipes taken at random lie as close together with p = {p:.3f}."
    )
    return Conjecture(1, _CLAIMS[1], SUPPORTED if p < _LEVEL else NOT_SHOWN, evidence)


def _second(regime: CostRegime, seed: int) -> Conjecture:
    macs = np.array([sample.macs for sample in regime.samples], np.float64)
    spread = float(macs.max() / macs.min() - 1)
    if spread < _ALIKE:
        text = (
            f"All recipes have the same MACs (within {100 * spread:.1f} %), by the choice of the space; with "
            f"--speedup "
            f"they differ."
        )
        return Conjecture(2, _CLAIMS[2], NOT_TESTED, text)
    shares = np.array([parameter_share(sample, regime.dense) for sample in regime.samples])
    middle = np.argsort(np.abs(shares - np.median(shares)), kind="stable")[: max(FEWEST, len(shares) // 2)]
    near = [regime.samples[i] for i in sorted(middle)]
    won, every, p = concentration(near, lambda s: s.macs / regime.dense.macs, seed=seed)
    text = (
        f"Among the {len(near)} recipes with {100 * shares[middle].min():.1f} to {100 * shares[middle].max():.1f} % "
        f"of the "
        f"parameters the winners have {won[0]:.3f} to {won[1]:.3f} of the MACs, all of them {every[0]:.3f} to "
        f"{every[1]:.3f}. As many taken at random lie as close together with p = {p:.3f}."
    )
    return Conjecture(2, _CLAIMS[2], SUPPORTED if p < _LEVEL else NOT_SHOWN, text)


def _third(regime: CostRegime, every: Sequence[CostRegime], seed: int) -> Conjecture:
    found = optimum_of(regime.samples, regime.dense, seed=seed)
    if found is None:
        return Conjecture(
            3, _CLAIMS[3], NOT_TESTED, "All recipes have the same MACs per parameter, or lose the same."
        )
    low, high = found.interval
    text = (
        f"The drop is smallest at {found.at:.3f} times the dense model's MACs per parameter (95 %: {low:.3f} to "
        f"{high:.3f}; recipes from {found.observed[0]:.3f} to {found.observed[1]:.3f})."
    )
    if found.inside < 1 - _LEVEL:
        text += f" In {100 * (1 - found.inside):.0f} % of the bootstrap samples that is an end of what was tried."
    close = SUPPORTED if low <= 1 <= high else CONTRADICTED
    least, most = found.observed
    ends_there = (least > 1 and low <= least * (1 + 1e-9)) or (most < 1 and high >= most * (1 - 1e-9))
    if high - low > _WIDE * (most - least) or ends_there:  # nothing beyond that end was tried
        close = NOT_SHOWN
    trend, said = _trend(every, seed)
    verdict = close if trend == NOT_TESTED or close != SUPPORTED else trend
    return Conjecture(3, _CLAIMS[3], verdict, f"{text} {said}")


def _trend(every: Sequence[CostRegime], seed: int) -> tuple[str, str]:
    """Does the optimum grow as less remains?"""
    optima = _optima(every, seed)
    if len(optima) < 2:
        return NOT_TESTED, "Whether it grows as less may remain takes several costs: name other sweeps with --beside."
    ordered = sorted(optima, key=lambda pair: -pair[0].remaining)
    places = [found.at for _, found in ordered]
    text = ", ".join(f"{one.name}: {found.at:.3f}" for one, found in ordered)
    grows = all(after >= before for before, after in pairwise(places))
    apart = ordered[0][1].interval[1] < ordered[-1][1].interval[0]
    verdict = (SUPPORTED if apart else NOT_SHOWN) if grows else CONTRADICTED
    return verdict, f"From the mildest cost to the hardest: {text}."


def _fourth(every: Sequence[CostRegime], seed: int) -> Conjecture:
    optima = _optima(every, seed)
    if len(optima) < _FEWEST_REGIMES:
        text = f"It takes {_FEWEST_REGIMES} costs of which one is left out; there are {len(optima)}: see --beside."
        return Conjecture(4, _CLAIMS[4], NOT_TESTED, text)
    x = np.array([found.at for _, found in optima])
    y = np.array([min(sample.drop for sample in one.samples) for one, _ in optima])
    missed = []
    for left_out in range(len(x)):
        others = np.arange(len(x)) != left_out
        line = np.polynomial.polynomial.polyfit(x[others], y[others], 1)
        missed.append(float(y[left_out] - np.polynomial.polynomial.polyval(x[left_out], line)))
    squares, total = float(np.square(missed).sum()), float(np.square(y - y.mean()).sum())
    explained = 1 - squares / total if total else 0.0
    text = (
        f"A line through {len(x)} costs predicts the smallest drop of each left-out one with R2 = {explained:.2f} "
        f"(largest error {max(map(abs, missed)):.2f} points)."
    )
    return Conjecture(4, _CLAIMS[4], SUPPORTED if explained > 0.5 else NOT_SHOWN, text)


def _optima(every: Sequence[CostRegime], seed: int) -> list[tuple[CostRegime, Optimum]]:
    found = [(one, optimum_of(one.samples, one.dense, seed=seed)) for one in every]
    return [(one, optimum) for one, optimum in found if optimum is not None]
