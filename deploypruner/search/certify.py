"""The promise, checked on the final artifact: after recovery, beside everything else, in fresh processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from deploypruner.measure import Measured
from deploypruner.records import Setting, Timing
from deploypruner.search.goal import Assessment, Goal

DENSE_MIXED = "dense int8 mixed"
"""Name of the dense model in int8 with the layers in float that a setting says."""


@dataclass(frozen=True)
class Certificate:
    """What the last measurement says about the budget.

    Args:
        artifact: Name of the row it is about.
        measured: In the unit of the budget; None where the artifact could not be measured.
        bound: End of its 95 % interval that has to keep the budget, widened where the machine was busy or slowed
            down; None where that leaves too little to tell.
        met: Is the budget kept? None where the machine was too busy or too hot to tell.
        doubt: What disturbed the run and what was made of it, "" where nothing did.
    """

    artifact: str
    measured: float | None
    bound: float | None
    met: bool | None
    doubt: str = ""


def certify(goal: Goal, setting: Setting, run: Measured, *, seed: int = 0, artifact: str = "") -> Certificate:
    """Judge the pruned artifact of `setting` by a run that holds the dense one too.

    On a machine that was busy, or whose processor slowed down, the interval is widened by `widening`, and a budget
    that it keeps all the same is certified; one that it does not keep is neither kept nor missed.

    Args:
        goal: What was promised.
        setting: Where.
        run: With the timings.
        seed: Of the bootstrap.
        artifact: As in `SearchResult`.
    """
    pruned, dense = (in_setting(run.timings, setting, dense=dense, artifact=artifact) for dense in (False, True))
    if pruned is None or dense is None:
        lost = "pruned" if pruned is None else "dense"
        name = f"pruned {setting.precision} on {setting.runtime}"
        return Certificate(name, None, None, None, f"the {lost} artifact could not be measured")
    found: Assessment = goal.assess(pruned, dense, seed=seed)
    name = f"{pruned.artifact.name} on {setting.runtime}"
    if not run.reason:
        return Certificate(name, found.measured, found.bound, found.met)
    is_ratio = goal.budget.speedup is not None
    factor = widening(run, dense) if is_ratio else (1 + run.floor) * run.conditions.slowdown
    if not found.strain * factor <= 1:
        return Certificate(name, found.measured, None, None, f"{run.reason}, and the margin is no larger than that")
    bound = found.bound / factor if is_ratio else found.bound * factor
    return Certificate(
        name, found.measured, bound, True, f"{run.reason}, so its interval was widened by {factor:.2f}x"
    )


def widening(run: Measured, dense: Timing) -> float:
    """By what factor others may have made a speed-up over `dense` look larger than it is.

        slowdown (1 + floor) / (1 - min(1, lost T / T_dense))

    As if all the time that workers lost to others had been lost by the dense model and none by the pruned one: of T
    seconds that all workers ran, lost T; as if the two had differed as two workers of one file did; and as if one had
    run at the highest frequency of the rounds and the other one at the lowest, where they fell. A latency needs the
    last two alone: others make calls longer, never shorter, but a processor that slows down may stay so.

    Args:
        run: All that was timed.
        dense: Of it, what the speed-up is over.
    """
    spent = [float(timing.samples_ns.sum()) for timing in (*run.timings, run.twin)]
    share = min(1.0, run.conditions.lost * sum(spent) / float(dense.samples_ns.sum()))
    return run.conditions.slowdown * (1 + run.floor) / (1 - share) if share < 1 else inf


def in_setting(timings: Sequence[Timing], setting: Setting, *, dense: bool, artifact: str = "") -> Timing | None:
    """The timing of the dense or the pruned artifact in `setting`, None where it is not among them.

    Args:
        timings: Of one run.
        setting: Where.
        dense: Which of the two.
        artifact: Name of the pruned one that is preferred to others, if it is among them.
    """
    found = [
        t
        for t in timings
        if (t.runtime, t.artifact.precision, t.artifact.pattern == "dense")
        == (setting.runtime, setting.precision, dense)
    ]
    wanted = artifact if not dense else DENSE_MIXED if setting.floats else ""
    named = [t for t in found if t.artifact.name == wanted]
    return next(iter(named or found), None)
