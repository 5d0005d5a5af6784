"""Every layer as a line of the page's table: what it costs, what it takes, and what its time goes by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from deploypruner.report import units
from deploypruner.report.document import LayerWidth
from deploypruner.report.page import breakable

HEADS = (
    *(
        ("layer", ""),
        ("kind", ""),
        ("channels", "dense → pruned"),
        ("MACs", "predicted"),
        ("params", "of the weight"),
    ),
    *(("dense", "ms"), ("pruned", "ms"), ("share", "of the time"), ("bound by", ""), ("runs in", "")),
)
"""Heading and the line below it, of every column."""
_TIMED = ("dense", "pruned", "share", "bound by", "runs in")


@dataclass(frozen=True)
class Cell:
    """One cell: what is shown, and the number that it is sorted by; None for text."""

    text: Markup
    key: float | None = None


@dataclass(frozen=True)
class LayerTable:
    """The table.

    Args:
        heads: As `HEADS`, without columns that have nothing in them.
        lines: One per layer, in the order of the model.
    """

    heads: tuple[tuple[str, str], ...]
    lines: tuple[tuple[Cell, ...], ...]


def layer_table(layers: Sequence[LayerWidth]) -> LayerTable:
    """All layers; the columns of times only where something was timed."""
    total = sum(layer.ms[1] or 0.0 for layer in layers if layer.ms is not None)
    timed = any(layer.ms is not None for layer in layers)
    shown = [i for i, (name, _) in enumerate(HEADS) if timed or name not in _TIMED]
    lines = (_cells(layer, total) for layer in layers)
    return LayerTable(tuple(HEADS[i] for i in shown), tuple(tuple(line[i] for i in shown) for line in lines))


def _cells(layer: LayerWidth, total: float) -> tuple[Cell, ...]:
    dense, pruned = layer.ms or (None, None)
    share = pruned / total if pruned and total else None
    return (
        Cell(breakable(layer.name)),
        Cell(_text(layer.kind)),
        Cell(_pair((layer.before, layer.after), str), layer.after),
        Cell(_pair(layer.macs, units.scaled), -1 if layer.macs is None else layer.macs[1]),
        Cell(_pair(layer.params, units.scaled), -1 if layer.params is None else layer.params[1]),
        Cell(_text(units.significant(dense)), -1.0 if dense is None else dense),
        Cell(_text(units.significant(pruned)), -1.0 if pruned is None else pruned),
        Cell(_text("-" if share is None else f"{100 * share:.1f} %"), -1.0 if share is None else share),
        Cell(_text(layer.bound or "-")),
        Cell(_text(" ".join(filter(None, (layer.precision, layer.pattern))) or "-")),
    )


def _pair(pair: tuple[int, int] | None, said: Callable[[int], str]) -> Markup:
    if pair is None:
        return _text(units.UNKNOWN)
    before, after = pair
    if before == after:
        return _text(said(before))
    return Markup("{} → <b>{}</b>").format(said(before), said(after) if after else "gone")


def _text(text: str) -> Markup:
    return escape(text)
