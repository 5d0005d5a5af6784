"""Where labels go so that none hides a marker or another label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

_CLEAR = 10.0
_STEP = 9.0
_RINGS = 16
_SWEEPS = 3
_GAP = 6.0  # between two labels side by side, which would read as one
_STOLEN = 30.0


class Box(NamedTuple):
    """A rectangle in pixels, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """Shared area, 0 where the boxes only touch."""
        if (
            other.left >= self.right
            or other.right <= self.left
            or other.top >= self.bottom
            or other.bottom <= self.top
        ):
            return 0.0
        wide = min(self.right, other.right) - max(self.left, other.left)
        return wide * (min(self.bottom, other.bottom) - max(self.top, other.top))

    def holds(self, other: Box) -> bool:
        """Whether `other` lies inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box closest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)


@dataclass(frozen=True)
class _Scene:
    """What one label has to live with: its own marker, the other markers, drawn labels and lines, obstacles."""

    anchor: tuple[float, float]
    rivals: tuple[tuple[float, float], ...]
    drawn: tuple[Box, ...]
    obstacles: tuple[Box, ...]

    def best(self, candidates: Sequence[Box]) -> Box:
        """The first candidate without trouble, else the one with the least."""
        least, chosen = float("inf"), candidates[0]
        for box in candidates:
            trouble = sum(box.overlap(other) for other in self.drawn + self.obstacles)
            if trouble < least:
                trouble += self._confusion(box)
            if trouble == 0:
                return box
            if trouble < least:
                least, chosen = trouble, box
        return chosen

    def _confusion(self, box: Box) -> float:
        """What the leader line cuts, in square pixels, or a penalty where another marker is nearer than its own."""
        own = _distance(self.anchor, box)
        if not needs_leader(self.anchor, box):
            return _STOLEN if any(_distance(rival, box) < own for rival in self.rivals) else 0.0
        barred = [*self.drawn, *(Box(x - 6, y - 6, x + 6, y + 6) for x, y in self.rivals)]
        return sum(stone.overlap(other) for stone in _stepping_stones(self.anchor, box) for other in barred)


def place_labels(
    anchors: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    obstacles: Sequence[Box],
    bounds: Box,
) -> list[Box]:
    """Find a box for each label, near its anchor and clear of obstacles and of the labels before it.

    Args:
        anchors: Marker centres.
        sizes: Width and height of each label.
        obstacles: What no label may cover; includes the markers themselves.
        bounds: Where labels must stay.

    Returns:
        One box per anchor. Where no free place exists, the one that overlaps least.
    """
    placed: dict[int, Box] = {}
    order = sorted(range(len(anchors)), key=lambda i: (anchors[i][1], anchors[i][0]))
    candidates = [_candidates(anchor, size, bounds) for anchor, size in zip(anchors, sizes, strict=True)]
    for _ in range(_SWEEPS):
        before = dict(placed)
        for i in order:
            others = [j for j in placed if j != i]
            drawn = [placed[j]._replace(left=placed[j].left - _GAP, right=placed[j].right + _GAP) for j in others]
            drawn += [stone for j in others for stone in _stepping_stones(anchors[j], placed[j])]
            scene = _Scene(anchors[i], tuple(a for a in anchors if a != anchors[i]), tuple(drawn), tuple(obstacles))
            placed[i] = scene.best(candidates[i])
        if placed == before:
            break
    return [placed[i] for i in range(len(anchors))]


def needs_leader(anchor: tuple[float, float], box: Box) -> bool:
    """Whether the label is so far from its marker that a line must join them."""
    return _distance(anchor, box) > 1.6 * _CLEAR


def _candidates(anchor: tuple[float, float], size: tuple[float, float], bounds: Box) -> list[Box]:
    """Places beside the anchor, and on wider and wider rings above and below it, nearest first."""
    (x, y), (wide, high) = anchor, size
    spots = []
    for ring in range(_RINGS):
        sides = [x + _CLEAR + _STEP * k for k in range(0, 9, 2)]
        lefts = [*sides, *(2 * x - wide - side for side in sides)]
        if ring * _STEP > _CLEAR:
            lefts += [x - wide * share for share in (0.2, 0.5, 0.8)]
        for dy in dict.fromkeys((ring * _STEP, -ring * _STEP)):
            spots += [Box(left, y + dy - high / 2, left + wide, y + dy + high / 2) for left in lefts]
    inside = [box for box in spots if bounds.holds(box)]
    return sorted(inside or spots, key=lambda box: _distance(anchor, box))


def _stepping_stones(anchor: tuple[float, float], box: Box) -> list[Box]:
    """Small boxes along the leader line, so that lines and labels avoid each other."""
    if not needs_leader(anchor, box):
        return []
    (x, y), (to_x, to_y) = anchor, box.nearest(*anchor)
    points = [(x + (to_x - x) * k / 10, y + (to_y - y) * k / 10) for k in range(3, 10)]
    return [Box(px - 2, py - 2, px + 2, py + 2) for px, py in points]


def _distance(anchor: tuple[float, float], box: Box) -> float:
    x, y = box.nearest(*anchor)
    return float(((x - anchor[0]) ** 2 + (y - anchor[1]) ** 2) ** 0.5)
