"""Labels of a batch in the one form that training knows: those of each output, or one tensor for the only one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import Tensor

Labels: TypeAlias = Tensor | tuple[Tensor, ...] | None
"""`[N, ...]` for the output with label 0; a tuple of such, one per label; None without."""


def label_of(labels: Labels, number: int | None) -> Tensor | None:
    """The labels with this number, None where there are none."""
    if number is None or labels is None:
        return None
    parts = label_parts(labels)
    return parts[number] if number < len(parts) else None


def label_parts(labels: Labels) -> Sequence[Tensor]:
    """All tensors of labels, in order."""
    if labels is None:
        return ()
    return labels if isinstance(labels, tuple) else (labels,)


def map_labels(function: Callable[[Tensor], Tensor], labels: Labels) -> Labels:
    """The same labels with a function applied to each tensor: moved, or some rows of them."""
    if labels is None:
        return None
    return tuple(map(function, labels)) if isinstance(labels, tuple) else function(labels)


def labels_at(labels: Labels, rows: slice | Tensor) -> Labels:
    """The labels of some samples."""
    return map_labels(lambda part: part[rows], labels)
