"""The promise, checked on the final artifact: after recovery, beside everything else, in fresh processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        bound: End of its 95 % interval that has to keep the budget; None where the machine was too busy to tell.
        met: Is the budget kept? None where the machine was too busy to tell.
        doubt: Why nothing is certified, "" where it is.
    """

    artifact: str
    measured: float | None
    bound: float | None
    met: bool | None
    doubt: str = ""


def certify(
    goal: Goal, setting: Setting, timings: Sequence[Timing], *, doubt: str, seed: int = 0, artifact: str = ""
) -> Certificate:
    """Judge the pruned artifact of `setting` by timings of one run that hold the dense one too.

    Args:
        goal: What was promised.
        setting: Where.
        timings: Of one run.
        doubt: Why they certify nothing, "" where they do.
        seed: Of the bootstrap.
        artifact: As in `SearchResult`.
    """
    pruned, dense = (in_setting(timings, setting, dense=dense, artifact=artifact) for dense in (False, True))
    if pruned is None or dense is None:
        lost = "pruned" if pruned is None else "dense"
        name = f"pruned {setting.precision} on {setting.runtime}"
        return Certificate(name, None, None, None, f"the {lost} artifact could not be measured")
    found: Assessment = goal.assess(pruned, dense, seed=seed)
    name = f"{pruned.artifact.name} on {setting.runtime}"
    if doubt:
        return Certificate(name, found.measured, None, None, doubt)
    return Certificate(name, found.measured, found.bound, found.met)


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
