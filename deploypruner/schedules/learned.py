"""learned: what a criterion that trains its own masks has in place of a schedule."""

from __future__ import annotations

from deploypruner.schedules import Schedule, schedules


@schedules.register("learned", applies_to=("channels",))
class LearnedSchedule(Schedule):
    """Masks are trained with the weights; the one of pdp and dtp."""
