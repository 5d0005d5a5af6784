"""DTP: soft masks as transport plans between learned scores and "so many stay", one Sinkhorn iteration a step.

The plan T carries a mass 1/n of every entry to one of two bins, kept (k/n) and removed (1 - k/n); the mask is the
share that goes to "kept". Each step is a proximal one: it minimises <T, C> + beta D(T, T_before), where keeping
entry i costs -s_i and D is the Kullback-Leibler divergence, by one Sinkhorn iteration. With two bins all of that is
a recursion on the logits of the mask, which is how it is computed here:

    d <- d + logit(k / n) - logit(mean sigmoid(l + s / beta + d))        columns: as many as shall stay
    l <- l + s / beta + d,       m = sigmoid(l)                          rows: every entry goes somewhere

Kernels multiply from step to step, so that with constant scores the plan of step t is the entropic one of temperature
beta / t: the masks harden by themselves, and past scores are kept.

Source:
    Li et al., "Differentiable Transportation Pruning", ICCV 2023, arXiv:2307.08483: the transport between scores and
    a Bernoulli target, one Sinkhorn iteration per minibatch, the Bregman divergence. Its body was not readable; the
    equations are derived, and the single iteration is that of Xie et al., arXiv:1802.04307. The form in logits is
    ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from deploypruner.sparsity.masks.hard import Keep, top_mask

UNDECIDED = (0.05, 0.95)


class TransportMask:
    """The masks of `[..., n]` entries, row by row; called once in every training step.

    Args:
        shape: Of the scores, n last.
        keep: How many entries of a row stay, one number or one for every row. A row that keeps nothing, or
            everything, has a mask of zeros, or of ones, from the start.
        beta: Strength of the proximal term, > 0, in the unit of the scores; the one temperature. Larger hardens
            later.
        device: Where the scores are.
        dtype: Of the plan; float16 and bfloat16 would underflow.

    Attributes:
        beta: May be lowered at any time; that only hardens sooner.
    """

    def __init__(
        self,
        shape: Sequence[int],
        keep: Keep,
        beta: float,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        assert beta > 0, f"beta must be > 0, got {beta}"
        assert dtype in (torch.float32, torch.float64), f"a plan in {dtype} underflows"
        *rows, self._n = shape
        self.keep = torch.as_tensor(keep, device=device).expand(rows)[..., None]
        share = self.keep.to(dtype).clamp(0.5, max(self._n - 0.5, 0.5)) / self._n  # of a bypassed row: whatever
        self._wanted = torch.logit(share)
        self.beta = beta
        self._logits = self._wanted.expand(*rows, self._n).clone()
        self._shift = torch.zeros_like(self._wanted)

    def __call__(self, scores: Tensor) -> Tensor:
        """Advance the plan by one iteration and return the masks `[..., n]`, whose rows sum to about `keep`.

        Gradients flow from the masks to the scores of this step alone: through the iteration, with the plan before it
        taken as given.

        Args:
            scores: `[..., n]`, larger means keep.
        """
        moved = self._logits + scores.to(self._logits.dtype) / self.beta
        tentative = moved + self._shift
        shift = self._shift + self._wanted - _mean_logit(tentative)
        logits = moved + shift
        self._logits, self._shift = logits.detach(), shift.detach()
        return self._bypassed(torch.sigmoid(logits))

    def soft(self) -> Tensor:
        """The masks of the last step again `[..., n]`, without a gradient; k/n before the first step."""
        return self._bypassed(torch.sigmoid(self._logits))

    @property
    def logits(self) -> Tensor:
        """Logits of the masks of the last step `[..., n]`; they differ where masks are equal to the last bit."""
        return self._logits

    def hard(self) -> Tensor:
        """Bool `[..., n]`: exactly `keep` entries of every row, those with the largest masks."""
        return top_mask(self._logits, self.keep[..., 0])

    def undecided(self) -> float:
        """Share of the entries with a mask between 0.05 and 0.95; about 0 when it is time to harden."""
        low, high = UNDECIDED
        soft = self.soft()
        return float(((soft > low) & (soft < high)).double().mean()) if soft.numel() else 0.0

    def state(self) -> dict[str, Tensor]:
        """What a resumed run needs to go on to the bit."""
        beta = torch.tensor(self.beta, dtype=torch.float64)
        return {"logits": self._logits, "shift": self._shift, "beta": beta}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self._logits = state["logits"].to(self._logits)
        self._shift = state["shift"].to(self._shift)
        self.beta = float(state["beta"])

    def _bypassed(self, soft: Tensor) -> Tensor:
        none, all_ = self.keep <= 0, self.keep >= self._n
        return torch.where(none, torch.zeros_like(soft), torch.where(all_, torch.ones_like(soft), soft))


def _mean_logit(logits: Tensor) -> Tensor:
    """`logit(mean sigmoid(l))` over the last axis, `[..., 1]`, exact for logits of any size."""
    kept = torch.logsumexp(logsigmoid(logits), dim=-1, keepdim=True)
    removed = torch.logsumexp(logsigmoid(-logits), dim=-1, keepdim=True)
    return kept - removed


def transport_beta(steps: int, gap: float) -> float:
    """A beta with which masks are hard after about half of `steps` steps; ours.

    The logit of an entry whose score stays `gap` from the threshold is `gap * t / beta` after t steps; 10 at half
    time is a mask of 0.99995.

    Args:
        steps: Of the whole training, >= 1.
        gap: Typical distance of a score from the threshold, averaged over the training, > 0.
    """
    assert steps >= 1, f"a training has a step, got {steps}"
    assert gap > 0, f"scores differ, got a gap of {gap}"
    return steps * gap / 20
