"""PDP: channels whose weights are small fade out, softly, while the network is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from deploypruner.channels.criteria import Criterion, Needs, Normalizer, criteria
from deploypruner.channels.criteria.taylor import Taylor
from deploypruner.errors import RecipeError
from deploypruner.records import MemberView


@criteria.register("pdp")
@dataclass(frozen=True)
class Pdp(Criterion):
    """Learned: soft masks that follow from the weights, ramped up to the target while training.

        m[c] = sigmoid((q[c]^2 - t^2) / tau),   q[c]^2 = mean of the squares of all weights of channel c

    Before training the score is that of `taylor`, which chooses the widths; training chooses the channels.

    Args:
        temperature: tau as a share of the spread of q^2 within a group, > 0; 0.04 is about the paper's 1e-4 for
            single weights.
        start: Fraction of the training before anything fades, in [0, 1).
        end: Fraction at which the full target is in force, in (start, 1].

    Raises:
        RecipeError: A value out of its range.

    Source:
        Cho, Adya, Naik, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023,
        arXiv:2305.11203: mask, threshold, ramp. Ours: q over all coupled layers, producers and consumers alike; the
        mask on gamma and beta of the batch norm, because one on its convolution has no effect; the widths, because
        the paper's global split by magnitude is one of single weights and cuts wide layers to the bone (q is small
        where fan-in is large: 59 k instead of 169 k parameters of a ResNet-20 at the same MACs);
        the temperature, and that it falls to a hundredth after the ramp; hard masks in the last tenth of the
        training; the ramp as fractions of the training.
    """

    needs: ClassVar[Needs] = Needs.GATES
    normalizer: ClassVar[Normalizer] = Taylor.normalizer
    learned: ClassVar[bool] = True

    temperature: float = 0.04
    start: float = 0.16
    end: float = 0.83

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise RecipeError(
                f"criterion.temperature must be > 0, got {self.temperature:g}", hint="0.04 suits most models"
            )
        if not 0 <= self.start < self.end <= 1:
            raise RecipeError(
                f"criterion.start and end must be 0 <= start < end <= 1, got {self.start:g} and {self.end:g}",
                hint="0.16 and 0.83 are the paper's",
            )

    def score(self, members: tuple[MemberView, ...]) -> Tensor:
        """Return `[C]` scores; see the class."""
        return Taylor().score(members)
