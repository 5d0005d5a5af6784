"""Shares of samples: how well a number of samples knows them, and whether two models differ in theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploypruner.records import AccuracyChange

CONFIDENCE = 0.95
_CHANCE = 1 - CONFIDENCE

Which = NDArray[Any]


def share_interval(right: Which, *, whole: float = 1.0) -> tuple[float, float]:
    """95 % interval of the share of samples that are right.

    Args:
        right: `[N]` bool, N > 0.
        whole: What all of them are: 1 for a share, 100 for percent.

    Source:
        Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 22(158), 1927, as
        scipy.stats computes it.
    """
    from scipy.stats import binomtest  # half a second, and only where something is judged

    found = binomtest(int(np.sum(right)), len(right)).proportion_ci(CONFIDENCE, method="wilson")
    return whole * float(found.low), whole * float(found.high)


def changed(right: Which, dense: Which) -> AccuracyChange:
    """Compare two models on the same samples: only those count that one of them alone gets right.

    Args:
        right: `[N]` bool, which samples a model gets right.
        dense: `[N]` bool, the same of the model it is compared with.

    Source:
        McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 12(2), 1947; the exact form, a binomial test of the pairs that differ, as scipy.stats has it.
    """
    from scipy.stats import binomtest  # as above

    gained, lost = int(np.sum(right & ~dense)), int(np.sum(dense & ~right))
    p = float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0
    if p >= _CHANCE:
        return AccuracyChange(gained, lost, p, "indistinguishable")
    return AccuracyChange(gained, lost, p, "better" if gained > lost else "worse")
