"""Measured rows as aligned text columns, accuracy beside speed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from deploypruner.records import ACCURACY, Comparison, Row
from deploypruner.report import units
from deploypruner.report.headline import RuntimeGroup, group_rows, heading
from deploypruner.report.terminal import Paint, ascii_only, painter
from deploypruner.terminal import escaped

_GAP = "  "
_MIN_NAME = 12
_INTERVAL = "[95 % interval]"
_SHORT = {"indistinguishable": "indist."}


@dataclass(frozen=True)
class _Column:
    """Two header lines, a cell per row, and when to leave it out: 0 = never, else the highest first."""

    head: str
    unit: str
    cell: Callable[[Row], str]
    spare: int = 0


@dataclass(frozen=True)
class _Layout:
    """Columns left and right of the speed-up with their widths, all in characters; limit is what is available.

    `short` is whether long verdicts are shortened.
    """

    name: int
    left: tuple[tuple[_Column, int], ...]
    speed: int
    right: tuple[tuple[_Column, int], ...]
    short: bool = False
    limit: int | None = None
    dropped: tuple[str, ...] = ()

    def width(self) -> int:
        return self.name + self.speed + sum(size + len(_GAP) for _, size in self.left + self.right) + len(_GAP)

    def line(self, name: str, cell: Callable[[_Column], str], speed: str) -> str:
        """One line; `speed` must already be padded, because paint has no width."""
        left = [cell(column).rjust(size) for column, size in self.left]
        right = [cell(column).rjust(size) for column, size in self.right]
        return _GAP.join([name.ljust(self.name), *left, speed, *right]).rstrip()


def table_rows(rows: Sequence[Row], *, colour: bool, width: int | None = None) -> str:
    """Return measured rows as text, grouped by runtime, each group's baseline first.

    Args:
        rows: At least one.
        colour: Whether ANSI colours may be used.
        width: Columns available; None for no limit. Columns that do not fit are left out and named.
    """
    assert rows, "a table needs at least one row"
    paint = painter(colour)
    groups = group_rows(rows)
    against = _against(groups)
    layout = _layout(rows, groups)
    if width is not None and layout.width() > width:
        layout = _layout(rows, groups, short=True)
    layout = _fit(replace(layout, limit=width))
    lines = [
        paint(layout.line("", lambda column: column.head, against.ljust(layout.speed)), "faint"),
        paint(layout.line("", lambda column: column.unit, _INTERVAL.ljust(layout.speed)), "faint"),
    ]
    for group in groups:
        lines.append(paint(escaped(heading(group)), "strong"))
        for row in group.rows:
            lines += _row_lines(row, group, layout=layout, paint=paint)
    if layout.dropped:
        lines.append(f"not shown in {width} columns: {', '.join(layout.dropped)}")
    return "\n".join(lines)


def _layout(rows: Sequence[Row], groups: Sequence[RuntimeGroup], *, short: bool = False) -> _Layout:
    metric = next((row.metric for row in rows if row.accuracy is not None), ACCURACY)
    agreed, kinds = units.agreement_head(rows)
    labelled = any(row.accuracy is not None for row in rows)
    compared = any(units.accuracy_verdict(row) for row in rows)
    scored = _Column(
        metric.name, ascii_only(units.metric_unit(rows)), lambda row: ascii_only(units.accuracy_cell(row))
    )
    under = ", ".join(filter(None, (kinds, "" if labelled else units.evaluated(rows))))
    left = (
        *([scored] if labelled or not kinds else []),
        *([_Column("vs dense", "p < 0.05", lambda row: _word(units.accuracy_verdict(row), short=True))] * compared),
        _Column(agreed, under, lambda row: ascii_only(units.agreement_cell(row, rows)), spare=1 if labelled else 0),
        _Column("median", "ms", lambda row: units.significant(row.median_ms)),
        _Column("p95", "ms", lambda row: units.significant(row.p95_ms), spare=2),
    )
    right = (
        _Column("MACs", "predicted", lambda row: units.scaled(row.macs), spare=4),
        _Column("params", "", lambda row: units.scaled(row.params), spare=5),
        *([_Column("nonzero", "params", lambda row: units.scaled(row.nonzero), spare=5)] if _sparse(rows) else []),
        _Column("size", "", lambda row: units.scaled(row.bytes, "B"), spare=3),
    )

    def sized(columns: tuple[_Column, ...]) -> tuple[tuple[_Column, int], ...]:
        cells = ((column, [column.cell(row) for row in rows]) for column in columns)
        return tuple(
            (column, max(map(len, (column.head, column.unit, *shown))))
            for column, shown in cells
            if any(cell != units.UNKNOWN for cell in shown)  # a column without a value says nothing
        )

    cells = [" ".join(_speed(row, group, short=short)) for group in groups for row in group.rows]
    return _Layout(
        name=max(_MIN_NAME, *(len(escaped(row.name)) + 2 for row in rows)),
        left=sized(left),
        speed=max(len(text) for text in (_against(groups), _INTERVAL, *cells)),
        right=sized(right),
        short=short,
    )


def _sparse(rows: Sequence[Row]) -> bool:
    """Does any row follow a pattern of zeros? Its MACs still count all multiply-adds: runtimes execute zeros too."""
    return any(row.pattern not in ("dense", "channel", "unknown") for row in rows)


def _fit(layout: _Layout) -> _Layout:
    """Leave out the columns that can be spared, then shorten names, until the layout fits."""
    while layout.limit is not None and layout.width() > layout.limit:
        spare = max((column for column, _ in layout.left + layout.right), key=lambda column: column.spare)
        if spare.spare == 0:
            return replace(layout, name=max(_MIN_NAME, layout.name - (layout.width() - layout.limit)))
        layout = replace(
            layout,
            left=tuple(pair for pair in layout.left if pair[0] is not spare),
            right=tuple(pair for pair in layout.right if pair[0] is not spare),
            dropped=(*layout.dropped, spare.head),
        )
    return layout


def _row_lines(row: Row, group: RuntimeGroup, *, layout: _Layout, paint: Paint) -> list[str]:
    """The row, and under its speed-up a second line against dense of the same precision where that differs."""
    numbers, verdict = _speed(row, group, short=layout.short)
    padding = " " * (layout.speed - len(numbers) - len(verdict) - 1)
    name = "  " + escaped(row.name)
    name = name if len(name) <= layout.name else name[: layout.name - 2] + ".."
    lines = [layout.line(name, lambda column: column.cell(row), f"{numbers} {paint(verdict, row.verdict)}{padding}")]
    same = row.same_precision
    if same is not None and group.baseline is not None and same.against not in (group.baseline.name, row.name):
        indent = layout.name + sum(size + len(_GAP) for _, size in layout.left) + len(_GAP)
        if layout.limit is not None:
            plain = _same_precision(same, painter(colour=False), short=layout.short)
            indent = max(0, min(indent, layout.limit - len(plain)))
        lines.append(" " * indent + _same_precision(same, paint, short=layout.short))
    return lines


def _same_precision(same: Comparison, paint: Paint, *, short: bool) -> str:
    link = "from" if same.verdict == "indistinguishable" else "than"
    numbers = units.ratio_with_interval(same.ratio, same.ratio_ci)
    return f"{numbers} {paint(_word(same.verdict, short=short), same.verdict)} {link} {escaped(same.against)}"


def _speed(row: Row, group: RuntimeGroup, *, short: bool) -> tuple[str, str]:
    if row is group.baseline:
        return units.ratio(row.ratio), "baseline"
    return units.ratio_with_interval(row.ratio, row.ratio_ci), _word(row.verdict, short=short)


def _word(verdict: str, *, short: bool) -> str:
    return _SHORT.get(verdict, verdict) if short else verdict


def _against(groups: Sequence[RuntimeGroup]) -> str:
    names = {group.baseline.name for group in groups if group.baseline is not None}
    return f"speed-up vs {escaped(names.pop())}" if len(names) == 1 else "speed-up vs baseline"
