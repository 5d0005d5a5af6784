"""Horizontal bars as inline SVG: layer widths before and after, and shares of a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deploypruner.records import SampleHistogram
from deploypruner.report import units
from deploypruner.report.document import LayerWidth

_MANY = 60
_SHOWN_OF_MANY = 40
_SVG = Markup('<svg class="bar" width="100%" height="{}" aria-hidden="true">{}</svg>')
_RECT = Markup('<rect class="{}" y="{}" width="{:.2f}%" height="{}"/>')

_COLUMN = Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
_HISTOGRAM = Markup(
    '<svg class="histogram" width="48" height="17" role="img" aria-label="{}"><title>{}</title>{}'
    '<line x1="0" y1="16.5" x2="48" y2="16.5"/></svg>'
)


@dataclass(frozen=True)
class WidthBar:
    """One layer: its record, its bar, and its change in words."""

    layer: LayerWidth
    bar: Markup
    change: str

    @property
    def gone(self) -> bool:
        """Is nothing left of the layer?"""
        return _is_gone(self.layer)


@dataclass(frozen=True)
class WidthBars:
    """The picture of all layers.

    Args:
        shown: What is always visible: every layer, or of more than 60 the 40 that lost most, in model order.
        changed: How many layers are narrower than before.
        gone: How many are not there any more.
    """

    shown: tuple[WidthBar, ...]
    changed: int
    gone: int


def width_bars(layers: Sequence[LayerWidth]) -> WidthBars:
    """Draw the widths on one linear scale: the pale bar is before, the solid one after."""
    longest = max((max(layer.before, layer.after) for layer in layers), default=1)
    gone = sum(map(_is_gone, layers))
    changed = sum(layer.after < layer.before for layer in layers) - gone
    by_loss = sorted(range(len(layers)), key=lambda i: (layers[i].after - layers[i].before, i))
    picked = range(len(layers)) if len(layers) <= _MANY else sorted(by_loss[:_SHOWN_OF_MANY])
    return WidthBars(tuple(_width_bar(layers[i], longest) for i in picked), changed=changed, gone=gone)


def histogram(found: SampleHistogram | None) -> Markup:
    """Raw samples as a few columns, the highest as high as the picture; nothing where none were kept."""
    if found is None or not sum(found.counts):
        return Markup("")
    most, wide = max(found.counts), 48 / len(found.counts)
    columns = (
        _COLUMN.format(i * wide, 16 - 16 * count / most, wide - 0.4, 16 * count / most)
        for i, count in enumerate(found.counts)
        if count
    )
    said = f"{sum(found.counts)} samples, {units.significant(found.low_ms)} to {units.significant(found.high_ms)} ms"
    return _HISTOGRAM.format(said, said, Markup("").join(columns))


def share_bar(share: float) -> Markup:
    """A bar that fills `share` (0 to 1) of its cell."""
    return _SVG.format(8, _RECT.format("share", 0, 100 * share, 8))


def _is_gone(layer: LayerWidth) -> bool:
    return layer.after == 0 < layer.before


def _width_bar(layer: LayerWidth, longest: int) -> WidthBar:
    before = _RECT.format("before", 0, 100 * layer.before / longest, 9)
    after = _RECT.format("after", 0, 100 * layer.after / longest, 9)
    return WidthBar(layer, _SVG.format(9, before + after), units.change(layer.before, layer.after))
