"""One operation of a latency model, ready to evaluate."""

from __future__ import annotations

from dataclasses import dataclass

from deploypruner.graph.labels.atoms import IntArray
from deploypruner.latency.nodes import Node


@dataclass(frozen=True)
class Term:
    """One operation, ready to evaluate: `presence * surface(length[axes] * times // per)`.

    Args:
        node: The operation.
        surface: Number of its surface.
        axes: `[k]` positions in the lengths.
        times: `[k]` factors.
        per: `[k]` divisors.
        axes_list: `axes` as a list.
        plain: Are all factors and divisors 1?
    """

    node: Node
    surface: int
    axes: IntArray
    times: IntArray
    per: IntArray
    axes_list: tuple[int, ...]
    plain: bool

    def sizes(self, lengths: IntArray) -> IntArray:
        """Sizes `[m, k]` for lengths `[m, axes]`."""
        found: IntArray = lengths[:, self.axes] * self.times // self.per
        return found

    @property
    def all_axes(self) -> tuple[int, ...]:
        """Axes its sizes follow, and that of its branch."""
        return self.axes_list if self.node.branch is None else (*self.axes_list, self.node.branch)

    def runs(self, lengths: IntArray) -> bool:
        """Is it executed, given the remaining length of every axis?"""
        return self.node.branch is None or bool(lengths[self.node.branch])
