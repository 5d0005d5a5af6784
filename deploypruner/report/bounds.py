"""Which bound decided the result, in a sentence."""

from __future__ import annotations

from typing import Any

from deploypruner.report import units

_NAMES = {"speedup": "speed-up", "macs": "multiply-adds"}


def bounds_sentence(budget: dict[str, Any]) -> str:
    """ "active: both; latency decided multiply-adds 3.2 M -> 1.4 M, 0.21 of 5 ms left; accuracy decided ...".

    Args:
        budget: The report's; "" where it says nothing of bounds.
    """
    found = budget.get("bounds")
    if not found:
        return ""
    parts = [_said(found["budget"]), _said(found["accuracy"])]
    return f"active: {_names(found)}; {'; '.join(parts)}"


def _names(found: dict[str, Any]) -> str:
    active = str(found["active"])
    return _NAMES.get(active, active)


def _said(bound: dict[str, Any]) -> str:
    name = _NAMES.get(bound["name"], bound["name"])
    decided = ", ".join(text.removeprefix(f"{name} ") for text in bound["decided"])
    return f"{name} decided {decided or 'nothing'}, {_margin(bound)}"


def _margin(bound: dict[str, Any]) -> str:
    margin, allowed = bound["margin"], bound["allowed"]
    if margin is None:
        return "and how much of it is left is not known"
    of = "" if allowed is None else f" of {allowed:g}"
    unit = bound["unit"].removesuffix(" of the multiply-adds")
    number = units.significant if unit in ("ms", "x") else units.points
    if margin < 0:
        return f"missed by {number(-margin)} {unit}"
    if bound["name"] == "accuracy" and allowed is not None and margin > allowed:
        return f"all {allowed:g} {unit} left, {number(margin - allowed)} gained"
    if bound["name"] == "speedup":
        return f"{number(margin)}x more than asked"
    return f"{number(margin)}{of} {unit} left"
