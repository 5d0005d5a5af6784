"""Int8 with some layers in float, as a setting that a budget of time may be for.

Where int8 everywhere loses too much, the layers that its accuracy needs in float take time that the search has to
know of: every candidate is then written, predicted and measured with these layers float. Whether that beats float
everywhere is measured.
"""

from __future__ import annotations

from dataclasses import replace

from deploypruner.measure import DECIDING_SECONDS, median_ms
from deploypruner.records import Setting, Timing
from deploypruner.search.choose import ChosenSetting
from deploypruner.search.request import SearchRequest


def with_mix(request: SearchRequest, choice: ChosenSetting) -> ChosenSetting:
    """The choice, or a mix of int8 and float in its place where int8 everywhere loses too much and the mix is faster.

    Args:
        request: The search; `floats` are asked for by an earlier pass, whose artifact had them float.
        choice: Among float and int8 everywhere.
    """
    wanted = bool(request.floats) and choice.setting.precision == "int8"
    runtime = choice.setting.runtime if wanted or choice.loses else choice.int8_given_up
    if request.mixed is None or not runtime:
        return choice
    found = request.mixed(runtime, request.floats)
    if found is None:
        return choice
    artifact, floats = found
    setting = Setting(runtime, "int8", choice.setting.threads, floats, artifact.environment)
    ours, theirs = _side_by_side(request, setting, (artifact, runtime), choice)
    faster = median_ms(ours.samples_ns) < median_ms(theirs.samples_ns)
    if choice.setting.precision == "fp32" and not faster:
        return replace(choice, remark=f"{choice.remark}; {setting} would keep it and is no faster")
    kept = ", which earlier had to stay float" if wanted else ", which keeps the accuracy"
    remark = f"{choice.remark}; but the budget is for {setting}{kept}"
    given_up = str(replace(setting, floats=()))
    return ChosenSetting(setting, ours, remark, gave_up=given_up)


def _side_by_side(
    request: SearchRequest, setting: Setting, job: tuple[object, str], choice: ChosenSetting
) -> tuple[Timing, Timing]:
    measured = request.clock.artifacts(
        [job, (choice.timing.artifact, choice.timing.runtime)],
        threads=setting.threads,
        budget_s=DECIDING_SECONDS,
        seed=request.seed,
        feeds=request.feeds,
    )
    ours, theirs = measured.complete()
    return ours, theirs
