"""The two SVG elements every picture needs, with coordinates to a tenth of a pixel."""

from __future__ import annotations

from markupsafe import Markup

Point = tuple[float, float]


def line(css: str, start: Point, end: Point) -> Markup:
    """A straight line; `css` are its class names."""
    drawn = Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>')
    return drawn.format(css, *start, *end)


def text(css: str, at: Point, content: str, *, anchor: str = "start") -> Markup:
    """One line of text, escaped; `anchor` is start, middle or end."""
    drawn = Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    return drawn.format(css, *at, anchor, content)
