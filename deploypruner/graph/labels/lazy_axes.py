"""Axes that came out of a split and may yet be merged again: the lazy half of the label algebra.

Splitting 24 channels into (4, 6) would tie channel c to the pair (c // 6, c % 6) at once. A channel shuffle
(view, transpose, view) merges the pair again in another order and needs no tie at all. So the axes of a split
stay *joint*: they remember the whole block of labels, and only a use other than a complete merge forces them
into product form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.fx import Node

from deploypruner.graph.labels.atoms import Atoms, IntArray, Labels, join


class Joint:
    """The axes of one split, not yet factored.

    Args:
        atoms: The algebra.
        block: Labels `[s0, .., sm, k]` of every combination of indices.
        index: `[s0, .., sm]` position of each combination on the source axis.
        source: (node, axis) that was split, or None when it was several axes.
    """

    def __init__(self, atoms: Atoms, block: IntArray, index: IntArray, source: tuple[Node, int] | None) -> None:
        self.atoms = atoms
        self.block = block
        self.index = index
        self.source = source
        self.axes: list[Labels] | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Lengths of the joint axes."""
        return self.block.shape[:-1]

    def force(self) -> list[Labels]:
        """Product form: one label array per axis. Learnt once, then fixed."""
        if self.axes is None:
            rows = self.atoms.canon(self.block.reshape(-1, self.block.shape[-1]))
            axes, residual = self.atoms.factor(rows.reshape(*self.sizes, -1))
            if residual.any():
                new = [self.atoms.fresh(size) for size in self.sizes]
                self.atoms.unify(
                    residual.reshape(-1, residual.shape[-1]),
                    self.atoms.flatten(new, self.sizes),
                    "split into axes one of which is fixed",
                )
                axes = [join(old, extra) for old, extra in zip(axes, new, strict=True)]
            self.axes = axes
        return self.axes

    def gone(self, removed: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Bool `[s0, .., sm]`: which combinations vanish with the atoms marked in `removed`."""
        rows = self.atoms.canon(self.block.reshape(-1, self.block.shape[-1]))
        return removed[rows].any(axis=1).reshape(self.sizes)

    def is_box(self, removed: NDArray[np.bool_]) -> bool:
        """Is what vanishes a union of whole index slices, so that the split tensor exists?"""
        if self.axes is not None:
            return True
        gone = self.gone(removed)
        slices = np.zeros_like(gone)
        for d in range(gone.ndim):
            others = tuple(e for e in range(gone.ndim) if e != d)
            slices |= gone.all(axis=others, keepdims=True)
        return bool((slices == gone).all())


@dataclass(frozen=True)
class JointAxis:
    """One axis of a joint split: `joint` and which of its axes this is."""

    joint: Joint
    position: int

    def labels(self) -> Labels:
        """Product-form labels of this axis; forces the joint."""
        return self.joint.force()[self.position]


Axis = Labels | JointAxis


@dataclass(frozen=True)
class Dissolved:
    """A view that merged a joint completely again, so that its output axis is a permutation of the source axis.

    Args:
        source: (node, axis) the labels came from.
        axis: Axis of the merging view's output.
        permutation: `[n]` position on the source axis of each output index.
        joint: The split that was merged, or None for an operator that permutes by itself.
    """

    source: tuple[Node, int]
    axis: int
    permutation: IntArray
    joint: Joint | None
