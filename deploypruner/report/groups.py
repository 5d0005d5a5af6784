"""The groups of a model as a table: what a channel is, what it costs, and what is done about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploypruner.report.ranges import collapse
from deploypruner.report.units import scaled
from deploypruner.terminal import escaped

_MIN_NAME = 16
# Kind of the lines of residual branches: one thing that stays or goes.
BRANCH = "branch"
_TIMED = ("ms to gain", "lost per ms")


@dataclass(frozen=True)
class GroupLine:
    """One line of the table.

    Args:
        id: Group id.
        kind: What a channel is; `BRANCH` for a residual branch.
        size: Channels.
        width: How many stay, None where nothing is planned.
        macs: Multiply-adds of one channel.
        share: Of all multiply-adds, those of layers that would vanish with the whole group, 0 to 1.
        note: Why it stays whole, or what else a user should know.
        saved_ms: Milliseconds predicted to go with this group alone at its narrowest, None where nobody asked.
        importance_per_ms: Share of all importance that goes per millisecond so saved, None where unknown or none is.
    """

    id: str
    kind: str
    size: int
    width: int | None
    macs: float
    share: float
    note: str
    saved_ms: float | None = None
    importance_per_ms: float | None = None


def group_table(lines: Sequence[GroupLine], width: int | None) -> list[str]:
    """Aligned lines, equal ones of repeated layers collapsed; names stay whole, to be pasted into --exclude.

    Args:
        lines: Of the table.
        width: Columns there are, None for no limit; long names get a line of their own.
    """
    timed = any(line.saved_ms is not None for line in lines)
    together: dict[tuple[str, ...], list[GroupLine]] = {}
    for line in lines:
        together.setdefault(_cells(line, timed), []).append(line)
    names = [collapse(line.id for line in same) for same in together.values()]
    rows = [(name, *cells) for cells, ids in zip(together, names, strict=True) for name in ids]
    head = ("group", "kind", "channels", "MACs each", "of all", *(_TIMED if timed else ()), "")
    last = len(head) - 1
    sizes = [max(len(row[i]) for row in (head, *rows)) for i in range(last)]
    apart = False
    if width is not None:
        spare = width - sum(sizes[1:]) - 2 * last - max(len(row[last]) for row in rows or [head])
        apart = sizes[0] > max(_MIN_NAME, spare)
        sizes[0] = _MIN_NAME if apart else sizes[0]
    return [line for row in (head, *rows) for line in _line(row, sizes, apart=apart)]


def _cells(line: GroupLine, timed: bool) -> tuple[str, ...]:
    channels = str(line.size) if line.width in (None, line.size) else f"{line.size} -> {line.width}"
    if line.kind == BRANCH:
        channels = "gone" if line.width == 0 else "stays" if line.width else ""
    times: tuple[str, ...] = ()
    if timed:
        rate = "" if line.importance_per_ms is None else f"{100 * line.importance_per_ms:.1f} %"
        times = (f"{line.saved_ms or 0:.3f}", rate)
    return line.kind, channels, scaled(line.macs), f"{100 * line.share:.1f} %", *times, line.note


def _line(row: Sequence[str], sizes: Sequence[int], *, apart: bool) -> list[str]:
    """A row; where names do not fit beside the numbers (`apart`), they have lines of their own and stay whole."""
    name = escaped(row[0])
    numbers = [f"{cell:>{size}}" for cell, size in zip(row[2:-1], sizes[2:], strict=True)]
    first = "" if len(name) > sizes[0] else name
    text = "  ".join((f"{first:{sizes[0]}}", f"{row[1]:{sizes[1]}}", *numbers, row[-1])).rstrip()
    return [name, text] if apart and len(name) > sizes[0] else [text]
