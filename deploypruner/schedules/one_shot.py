"""one-shot: everything at once, channels and weights alike."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from deploypruner.schedules import Schedule, schedules
from deploypruner.sparsity.training import SparseRegime


class OneShotMasks(SparseRegime):
    """All weights go before the first step; works without training too."""

    trains: ClassVar[bool] = False

    def begin(self, student: nn.Module, steps: int) -> None:
        """Choose and fix the masks."""
        super().begin(student, steps)
        self.hold()

    def soft(self, name: str, progress: float) -> Tensor:
        """Never called: masks are fixed from the start."""
        raise AssertionError(f"one-shot masks are hard, {name} at {progress}")


@schedules.register("one-shot", applies_to=("channels", "weights"))
class OneShotSchedule(Schedule):
    """Score once, then everything goes before the first step; weights need no training for it."""

    weights: ClassVar[type[SparseRegime] | None] = OneShotMasks
