"""How much a solved layer should be enlarged, so that what it gives varies as much as what it should give.

Least squares answers what its inputs cannot tell with smaller outputs: they vary by the explained part of the
variance alone. The layers behind were made for all of it, and behind many layers what is missing adds up. A gain for
each output puts it back, and costs the layer's own error next to nothing where most is explained.

Source:
    ASR, arXiv:2605.21426, scales the outputs of a pruned layer by the ratio of standard deviations. Ours: after least
    squares, of the stream where the layer is solved towards one, in closed form from sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deploypruner.train.least_squares import NormalEquations

# More is noise: a layer whose inputs explain less than half of its output. Less is the rounding of sums.
_MOST, _LEAST = 1.5, 1e-4


class Spread:
    """Sums over rows of what a layer should add and of what should be there, per output [G, O], in float64.

    Args:
        groups: G.
        inputs: K, columns of X.
        outputs: O.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self._rows = 0
        self._cross = torch.zeros(groups, inputs, outputs, dtype=torch.float64)
        self._wanted, self._both, self._missing = torch.zeros(3, groups, outputs, dtype=torch.float64)

    def add(self, x: Tensor, missing: Tensor, wanted: Tensor) -> None:
        """Take in rows `x` [G, n, K], `missing` [G, n, O] and `wanted` [G, n, O]: `Aim` of one batch."""
        self._rows += x.shape[1]
        self._cross += (x.mT @ wanted).double().cpu()
        r, t = missing.double().cpu(), wanted.double().cpu()
        self._wanted += t.square().sum(dim=1)
        self._both += (t * r).sum(dim=1)
        self._missing += r.square().sum(dim=1)

    def gains(self, sums: NormalEquations, correction: Tensor, weights: Tensor, *, constant: bool) -> Tensor:
        """Factor on every output [G, O], from 1 to 1.5, with which what arrives varies as it should.

        What arrives is t - e, where e = R - X D is what the correction D leaves missing of the wanted t. With the
        layer's own output o = X (W + D) enlarged by 1 + u, its variance is
        var(t - e) + 2 u cov(t - e, o) + u^2 var(o), a square equation for u. The smaller solution is taken, and
        where there is none the u that comes closest.

        Args:
            sums: Of the same rows.
            correction: D [G, K, O].
            weights: W [G, K, O], in the units of D; without the row of the constant.
            constant: Is the last column of X a one, so that means can be set apart? Otherwise squares stand for
                variances.
        """
        n = max(1, self._rows)
        gram, moment, cross = sums.gram, sums.moment, self._cross
        whole = correction.clone()
        whole[:, : weights.shape[1]] += weights
        seen = gram @ correction
        # Sums of squares and products of o, of t, and of what arrives, t - R + X D.
        own = (whole * (gram @ whole)).sum(dim=1)
        along = (whole * (cross - moment + seen)).sum(dim=1)
        wanted = self._wanted
        arrives = wanted + self._missing - 2 * self._both + (correction * (seen + 2 * (cross - moment))).sum(dim=1)
        if constant:
            o, t = (gram[:, -1:] @ whole)[:, 0], cross[:, -1]
            a = t - moment[:, -1] + seen[:, -1]
            own, along = own - o.square() / n, along - o * a / n
            wanted, arrives = wanted - t.square() / n, arrives - a.square() / n
        own = own.clamp_min(torch.finfo(torch.float64).tiny)
        root = (along.square() - own * (arrives - wanted)).clamp_min(0).sqrt()
        gains = (1 + (root - along) / own).clamp(1, _MOST)
        return torch.where(gains < 1 + _LEAST, 1.0, gains)
