"""Schedules: when what goes, channels or weights, goes during a training. Adding one is one file in this package.

--schedule          how channels go: entries that apply to "channels"
--sparse-schedule   how weights become zero: entries that apply to "weights"
"""

from __future__ import annotations

from typing import ClassVar

from deploypruner.registries import schedules
from deploypruner.sparsity.training import SparseRegime


class Schedule:
    """What a schedule says; a subclass is registered with what it applies to.

    Attributes:
        weights: For weights: the training in which the masks of a pattern grow.
        last_ranking: For channels that are ranked anew while training: the share of the training, in (0, 1], at
            which the last of them goes. The rest of it is fine-tuning.
        by_count: Can a number of channels that go at each ranking be asked for (`LearnSettings.channels`)?
    """

    weights: ClassVar[type[SparseRegime] | None] = None
    last_ranking: ClassVar[float | None] = None
    by_count: ClassVar[bool] = False

    @classmethod
    def ramp(cls, share: float) -> float:
        """Share of the rankings that are over, in (0, 1] -> share of the channels that are gone."""
        return share


def sparse_regime(name: str) -> type[SparseRegime]:
    """The training that makes weights sparse on the schedule called `name`.

    Raises:
        RecipeError: There is none that applies to weights; the nearest is offered.
    """
    schedules.check(name, to="weights", called="sparse schedule")
    found = schedules.get(name).weights
    assert found is not None, f"schedule '{name}' says that it applies to weights and has no regime for them"
    return found


__all__ = ["Schedule", "schedules", "sparse_regime"]
