"""Which runtime and precision a budget of time is for: the fastest that keeps the accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.errors import InputError
from deploypruner.measure import median_ms
from deploypruner.records import Quality, Setting, Timing
from deploypruner.search.gaps import Gap, gaps, largest

# Points that int8 alone may cost where the user did not say: of the metric, and of agreement without labels.
INT8_DROP, INT8_AGREEMENT_DROP = 1.0, 5.0


@dataclass(frozen=True)
class ChosenSetting:
    """A setting, and why.

    Args:
        setting: What the compiled model will run as.
        timing: Of the dense model there.
        remark: One sentence for the user.
        gave_up: The setting that is faster and loses too much, "" where this one is the fastest.
        int8_given_up: The runtime of the fastest int8 that is faster and loses too much, "" for none.
        loses: Does this one lose too much itself, for want of a better?
        lost: Points that it costs the dense model; 0 where nobody knows.
    """

    setting: Setting
    timing: Timing
    remark: str
    gave_up: str = ""
    int8_given_up: str = ""
    loses: bool = False
    lost: float = 0.0


def choose_setting(timings: Sequence[Timing], qualities: Sequence[Quality | None], *, drop: float) -> ChosenSetting:
    """Choose the setting in which the dense model is fastest and keeps its quality.

    Args:
        timings: Of the dense model, each runtime and precision the user allows.
        qualities: Of the same artifacts, each against the dense fp32 model; None where nothing was evaluated.
        drop: Points that may be lost against the best of them; of agreement, where there are no labels. Where every
            setting loses more, the one that loses least is chosen.

    Raises:
        InputError: No timings.
    """
    if not timings:
        raise InputError("no dense model could be measured", hint="choose another --runtime or --precision")
    best = _best(qualities)
    lost = [None if quality is None else largest(gaps(quality, best)) for quality in qualities]
    points = [_points(gap) for gap in lost]
    by_speed = sorted(range(len(timings)), key=lambda i: (median_ms(timings[i].samples_ns), i))
    keeping = [i for i in by_speed if points[i] <= drop]
    fastest = by_speed[0]
    chosen = keeping[0] if keeping else min(by_speed, key=lambda i: points[i])
    setting = _setting(timings[chosen])
    gap = lost[fastest]
    if chosen != fastest and gap is not None:
        remark = (
            f"{_setting(timings[fastest])} is faster but {_loss_text(gap)} (--accuracy-drop {drop:g}), "
            f"so the budget is for {setting}"
        )
    elif not keeping and gap is not None:
        remark = f"the budget is for {setting}, which {_loss_text(gap)} (--accuracy-drop {drop:g})"
    elif len(timings) == 1:
        remark = f"the budget is for {setting}"
    else:
        remark = f"the budget is for {setting}, where the dense model is fastest"
    before = by_speed[: by_speed.index(chosen)]
    int8 = next((timings[i].runtime for i in before if timings[i].artifact.precision == "int8"), "")
    gave_up = str(_setting(timings[fastest])) if chosen != fastest else ""
    loses = not keeping and timings[chosen].artifact.precision == "int8"
    return ChosenSetting(setting, timings[chosen], remark, gave_up, int8, loses, max(0.0, points[chosen]))


def _best(qualities: Sequence[Quality | None]) -> Quality | None:
    """The one with the best accuracy, None where none has any."""
    known = [quality for quality in qualities if quality is not None and quality.accuracy is not None]
    return max(known, key=_rank, default=None)


def _rank(quality: Quality) -> float:
    assert quality.accuracy is not None, "only what is known is ranked"
    better = quality.accuracy if quality.metric.higher_is_better else -quality.accuracy
    return better if better == better else float("-inf")


def _points(gap: Gap | None) -> float:
    """What is lost; nothing where nothing was evaluated, everything where it is not a number."""
    if gap is None:
        return 0.0
    return gap.lost if gap.lost == gap.lost else float("inf")


def _loss_text(gap: Gap) -> str:
    where = f" in output '{gap.output}'" if gap.output else ""
    if gap.labelled:
        return f"loses {gap.lost:.1f} points of {gap.kind}{where}"
    return f"disagrees with the dense fp32 model by {gap.lost:.1f} points ({gap.kind}{where})"


def _setting(timing: Timing) -> Setting:
    artifact = timing.artifact
    return Setting(timing.runtime, artifact.precision, timing.threads, environment=artifact.environment)
