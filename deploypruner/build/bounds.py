"""Which bound decided the result, the budget or the accuracy, and how much of each is left.

A bound is active where the build decided something because of it that it would have decided otherwise without: the
budget where anything was cut, the accuracy where int8 was given up, layers stayed float, or the result was refused.
"""

from __future__ import annotations

from typing import Any

from deploypruner.build.state import Build
from deploypruner.report import units
from deploypruner.search.kept import Kept

_UNITS = {"latency": "ms", "speedup": "x", "macs": "% of the multiply-adds"}


def bounds_of(build: Build, kept: Kept | None) -> dict[str, Any]:
    """As report.json has it under `budget.bounds`.

    Args:
        build: Measured.
        kept: What became of the quality, None where nothing is known of it.

    Returns:
        `active`: the name of the one that was, "both" or "neither"; `budget` and `accuracy`, each with its `name`,
        `active`, `decided` (what it decided, in words), `margin` (what is left, below zero where it is missed, None
        where nobody knows), `unit`, and `allowed`, what the margin is left of.
    """
    budget, accuracy = _budget(build), _accuracy(build, kept)
    active = [bound["name"] for bound in (budget, accuracy) if bound["active"]]
    return {
        "active": "both" if len(active) == 2 else active[0] if active else "neither",
        "budget": budget,
        "accuracy": accuracy,
    }


def _budget(build: Build) -> dict[str, Any]:
    asked, plan, found = build.recipe.prune.budget, build.planned, build.found
    decided = []
    if plan.macs_after < plan.macs_before or plan.dropped:
        before, after = units.scaled(plan.macs_before), units.scaled(plan.macs_after)
        decided.append(f"multiply-adds {before} -> {after}")
    if build.assigned and found is not None:
        decided.append(f"zeros in {_counted(len(build.assigned), 'layer')}")
    if found is None:
        share = plan.macs_after / plan.macs_before
        allowed: float | None = None if asked.macs is None else 100 * asked.macs
        margin = None if allowed is None else allowed - 100 * share
    else:
        allowed = found.goal(asked).requested
        bound = None if build.certificate is None else build.certificate.bound
        sign = 1 if asked.speedup is None else -1
        margin = None if bound is None else sign * (allowed - bound)
    if found is not None and found.pace:  # the accuracy decided about the time, see there
        decided = []
    return _bound(asked.kind, decided, margin, unit=_UNITS[asked.kind], allowed=allowed)


def _accuracy(build: Build, kept: Kept | None) -> dict[str, Any]:
    decided, found = [], build.found
    if found is not None and found.gave_up:
        decided.append(f"{found.gave_up} was given up")
    if found is not None and found.pace:
        decided.append(f"the time, {found.goal(build.recipe.prune.budget).requested:.3g} ms")
    layers = float_for_accuracy(build)
    if layers:
        decided.append(f"{_counted(len(layers), 'layer')} float")
    if kept is None:
        return _bound("accuracy", decided, None, unit="points", allowed=None)
    if not kept.kept:
        decided.append("the refusal")
    margin = kept.allowed - kept.lost
    return _bound("accuracy", decided, margin if margin == margin else None, unit="points", allowed=kept.allowed)


def float_for_accuracy(build: Build) -> tuple[str, ...]:
    """Layers of the int8 file that accuracy keeps float; none where that did not help."""
    judged = build.precision.get("accuracy") or {}
    trials = [trial for trial in judged.get("trials", ()) if trial["lost"] is not None]
    kept = [trial for trial in trials if trial["lost"] <= judged["allowed"]]
    if judged.get("needed") is not None or not kept:
        return ()
    return tuple(min(kept, key=lambda trial: int(trial["float_layers"]))["layers"])


def _bound(
    name: str, decided: list[str], margin: float | None, *, unit: str, allowed: float | None
) -> dict[str, Any]:
    missed = margin is not None and margin < 0
    return {
        "name": name,
        "active": bool(decided) or missed,
        "decided": decided,
        "margin": margin,
        "unit": unit,
        "allowed": allowed,
    }


def _counted(count: int, one: str) -> str:
    return f"{count} {one}{'' if count == 1 else 's'}"
