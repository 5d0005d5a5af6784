"""Which runtime and precision a budget of time is for: the fastest that keeps the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.errors import InputError
from deploypruner.measure import median_ms
from deploypruner.records import Quality, Setting, Timing

# Points that int8 alone may cost where the user did not say.
INT8_DROP = 1.0


@dataclass(frozen=True)
class Choice:
    """A setting, and why.

    Args:
        setting: What the compiled model will run as.
        timing: Of the dense model there.
        remark: One sentence for the user.
    """

    setting: Setting
    timing: Timing
    remark: str


def choose_setting(timings: Sequence[Timing], qualities: Sequence[Quality | None], *, drop: float) -> Choice:
    """Choose the setting in which the dense model is fastest and keeps its accuracy.

    Args:
        timings: Of the dense model, each runtime and precision the user allows.
        qualities: Of the same artifacts; None where nothing was evaluated.
        drop: Points of accuracy that may be lost against the best of them.

    Raises:
        InputError: No timings.
    """
    if not timings:
        raise InputError("no dense model could be measured", hint="choose another --runtime or --precision")
    known = [q.accuracy for q in qualities if q is not None and q.accuracy is not None]
    best = max(known, default=None)
    lost = [best - q.accuracy if best is not None and q and q.accuracy is not None else 0.0 for q in qualities]
    by_speed = sorted(range(len(timings)), key=lambda i: (median_ms(timings[i].samples_ns), i))
    keeping = [i for i in by_speed if lost[i] <= drop]
    chosen, fastest = keeping[0], by_speed[0]
    setting = _setting(timings[chosen])
    if chosen != fastest:
        remark = (
            f"{_setting(timings[fastest])} is faster but loses {lost[fastest]:.1f} points of accuracy "
            f"(--accuracy-drop {drop:g}), so the budget is for {setting}"
        )
    elif len(timings) == 1:
        remark = f"the budget is for {setting}"
    else:
        remark = f"the budget is for {setting}, where the dense model is fastest"
    return Choice(setting, timings[chosen], remark)


def _setting(timing: Timing) -> Setting:
    return Setting(timing.runtime, timing.artifact.precision, timing.threads)
