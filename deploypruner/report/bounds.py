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
    decided = f" decided {', '.join(bound['decided'])}" if bound["decided"] else " decided nothing"
    return f"{name}{decided}, {_margin(bound)}"


def _margin(bound: dict[str, Any]) -> str:
    margin, allowed = bound["margin"], bound["allowed"]
    if margin is None:
        return "and how much of it is left is not known"
    of = "" if allowed is None else f" of {allowed:g}"
    if margin < 0:
        return f"missed by {units.significant(-margin)} {bound['unit']}"
    if bound["name"] == "speedup":
        return f"{units.significant(margin)}x more than asked"
    return f"{units.significant(margin)}{of} {bound['unit']} left"
