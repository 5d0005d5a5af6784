"""What cannot be pruned, grouped by reason, in a person's words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.records import Frozen
from deploypruner.report.ranges import collapse
from deploypruner.report.terminal import wrap

_SIDES = {0: "outputs", 1: "inputs"}
_NO_RULE = "no rule for "


@dataclass(frozen=True)
class FrozenReason:
    """Everything one operation of the model holds in place.

    Args:
        reason: Why, in a person's words.
        where: File and line of the user's model, "" when unknown.
        count: How many channels.
        layers: "outputs of blocks.0-11.fc2": side and layers, collapsed.
    """

    reason: str
    where: str
    count: int
    layers: tuple[str, ...]


def by_reason(frozen: Sequence[Frozen]) -> list[FrozenReason]:
    """Frozen channels grouped by reason and source line, the most channels first."""
    groups: dict[tuple[str, str], list[Frozen]] = {}
    for entry in frozen:
        groups.setdefault((entry.reason, entry.where.partition(" (")[0]), []).append(entry)
    found = []
    for (reason, place), entries in groups.items():
        sides: dict[str, list[str]] = {}
        for entry in entries:
            side = _SIDES.get(entry.axis, f"axis {entry.axis}")
            sides.setdefault(side, []).append(entry.parameter.removesuffix(".weight"))
        layers = tuple(f"{side} of {', '.join(collapse(names))}" for side, names in sides.items())
        found.append(FrozenReason(reason, place, sum(e.count for e in entries), layers))
    return sorted(found, key=lambda f: (-f.count, f.reason))


def frozen_summary(frozen: Sequence[Frozen], width: int | None) -> list[str]:
    """One line per reason, without the layers."""
    counts: dict[str, int] = {}
    for entry in by_reason(frozen):
        counts[entry.reason] = counts.get(entry.reason, 0) + entry.count
    lines = [wrap(f"  {_number(count)}  ", reason, width) for reason, count in counts.items()]
    return [f"cannot be pruned (--frozen lists layers and lines): {_total(frozen)}", *lines] if lines else []


def frozen_details(frozen: Sequence[Frozen], width: int | None) -> list[str]:
    """Every reason with its layers, its source line, and what can be done about it."""
    if not frozen:
        return ["nothing is frozen: every channel between input and output can be pruned"]
    lines = [f"cannot be pruned: {_total(frozen)}"]
    indent = " " * len(f"  {_number(0)}  ")
    for entry in by_reason(frozen):
        place = f" ({entry.where})" if entry.where else ""
        lines += ["", wrap(f"  {_number(entry.count)}  ", f"{entry.reason}{place}", width)]
        lines += [wrap(indent, layers, width) for layers in entry.layers]
        if advice := _advice(entry.reason):
            lines.append(wrap(f"{indent}hint: ", advice, width))
    return lines


def _advice(reason: str) -> str:
    """What a user can do about it, where something can be done."""
    if reason.startswith(_NO_RULE):
        name = reason.removeprefix(_NO_RULE)
        operator = (name.rpartition(".")[0] or name).removeprefix("aten.")
        return f"what goes into {operator} and comes out of it keeps its size; linear and elementwise steps would not"
    return ""


def _total(frozen: Sequence[Frozen]) -> str:
    layers = len({entry.parameter for entry in frozen})
    return f"{sum(f.count for f in frozen):,} inputs and outputs of {layers} layer{'' if layers == 1 else 's'}"


def _number(count: int) -> str:
    return f"{count:>8,}"
