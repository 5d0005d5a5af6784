"""iterative: channels only, chosen anew every few minibatches."""

from __future__ import annotations

from typing import ClassVar

from deploypruner.schedules import Schedule, schedules


@schedules.register("iterative", applies_to=("channels",))
class IterativeSchedule(Schedule):
    """A few channels every few minibatches, chosen anew each time.

    Source:
        Molchanov et al., arXiv:1906.10771. Ours: half of the training for it.
    """

    last_ranking: ClassVar[float | None] = 0.5
    by_count: ClassVar[bool] = True
