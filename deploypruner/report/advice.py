"""What to try where pruning was not worth it: the command that made the build, changed, and why it may help."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deploypruner.command_line import without_option
from deploypruner.report import units
from deploypruner.report.document import Report

_MORE_EPOCHS = 3
_BUDGETS = ("--macs", "--latency", "--speedup")
# Points that are lost beyond what is allowed, from which on longer training alone is not likely to bring them back.
_FAR = 10.0


@dataclass(frozen=True)
class NextStep:
    """One thing to try.

    Args:
        command: A command line; of a build made in Python, the keywords of `compile` that change.
        why: What speaks for it.
    """

    command: str
    why: str


def milder(budget: Mapping[str, Any]) -> tuple[str, str]:
    """An option and a value that ask for less: halfway to the dense model, or what was predicted to keep the quality.

    Args:
        budget: The report's.
    """
    kind, requested = budget.get("kind"), budget.get("requested")
    asked = float(requested) if isinstance(requested, int | float) else 0.0
    keeps, dense = (budget.get("judged") or {}).get("keeps"), budget.get("dense_ms") or 2 * asked
    if kind == "speedup":
        return "--speedup", f"{dense / keeps if keeps else 1 + 0.5 * (asked - 1):.3g}"
    if kind == "latency":
        return "--latency", f"{keeps or 0.5 * (asked + dense):.3g}ms{_quantile(budget)}"
    return "--macs", f"{0.5 * (1 + (asked or 1.0)):.3g}"


def for_accuracy(report: Report) -> tuple[NextStep, ...]:
    """What may keep more of the accuracy."""
    found, settings, quality = [], report.settings, report.budget.get("quality") or {}
    epochs, over = settings.get("epochs"), (quality.get("lost") or 0.0) - (quality.get("allowed") or 0.0)
    tuned = {"--epochs": "auto"} if settings.get("data") and epochs == 0 else {}
    if tuned:
        found.append(_step(report, tuned, "nothing was fine-tuned, and that is what brings it back"))
    if _only_int8_loses(report):
        if "qat" not in report.precision:
            found.append(
                _step(report, {"--qat": "3"}, "float keeps it and int8 does not: train the file as it rounds")
            )
        elif report.budget.get("kind") != "macs":
            found.append(_step(report, {"--precision": "fp32"}, "float keeps it and int8 does not, trained or not"))
    option, value = milder(report.budget)
    less = _step(report, {option: value, **tuned}, "less is removed, so that less has to be recovered")
    longer = []
    if isinstance(epochs, int) and epochs > 0:
        many = _MORE_EPOCHS * epochs
        longer = [_step(report, {"--epochs": str(many)}, f"{epochs} epochs of recovery may not have been enough")]
    return (*found, *([less, *longer] if over > _FAR else [*longer, less]))[:2]


def for_time(report: Report) -> tuple[NextStep, ...]:
    """What may be faster than the dense model in the same precision."""
    budget = report.budget
    if budget.get("kind") == "macs":
        why = "multiply-adds are not time: under a budget of time layers are chosen by what they are measured to take"
        return (_step(report, {"--speedup": "1.5"}, why),)
    if budget.get("kind") == "speedup" and isinstance(asked := budget.get("requested"), int | float):
        why = "what was gained drowns in the rest of the network or in the noise: ask for more"
        return (_step(report, {"--speedup": f"{1.25 * asked:.3g}"}, why),)
    if budget.get("kind") == "latency" and isinstance(asked := budget.get("requested"), int | float):
        why = "what was gained drowns in the rest of the network or in the noise: ask for more"
        return (_step(report, {"--latency": f"{0.8 * asked:.3g}ms{_quantile(budget)}"}, why),)
    return ()


def step_lines(steps: Sequence[NextStep]) -> list[str]:
    """Each as text: the command, and why."""
    return [f"{step.command} ({step.why})" for step in steps]


def _quantile(budget: Mapping[str, Any]) -> str:
    quantile = budget.get("quantile", 0.5)
    return "" if quantile == 0.5 else f"@p{100 * quantile:g}"


def _only_int8_loses(report: Report) -> bool:
    quality = report.budget.get("quality") or {}
    if not quality or quality.get("kept") or not units.is_labelled(quality):
        return False
    there = {row.precision: row for row in report.rows if row.pattern != "dense" and row.accuracy is not None}
    floats, dense = there.get("fp32"), quality.get("dense")
    if floats is None or floats.accuracy is None or dense is None:
        return False
    return floats.metric.lost(dense, floats.accuracy) <= quality["allowed"]


def _step(report: Report, changes: Mapping[str, str], why: str) -> NextStep:
    words = shlex.split(report.command)
    if words[:2] != ["deploypruner", "compile"]:
        return NextStep(", ".join(_keyword(option, value) for option, value in changes.items()), why)
    for option, value in changes.items():
        drop = _BUDGETS if option in _BUDGETS else (option,)
        for name in drop:
            words = without_option(words, name)
        words += [option, value]
    out = next((word.partition("=")[2] for word in words if word.startswith("--out=")), "")
    if "--out" in words[:-1]:
        out = words[words.index("--out") + 1]
    words = [word for word in without_option(words, "--out") if word not in ("--resume", "--overwrite")]
    return NextStep(shlex.join([*words, "--out", f"{(out or 'build').rstrip('/')}-2"]), why)


def _keyword(option: str, value: str) -> str:
    number = value.replace(".", "", 1).isdigit()
    return f"{option.removeprefix('--').replace('-', '_')}={value if number else repr(value)}"
